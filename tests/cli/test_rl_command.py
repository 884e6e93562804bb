"""`dialtune rl` and `dialtune doctor rl`: bad recipes, bad rewards, a wrong reference, and a run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_tiny import CAP, data, start_adapter, start_policy, updates
from safetensors.torch import load_file

from dialtune.cli.app import run_command
from dialtune.models.reference import Reference
from dialtune.rewards.probes import load_probes
from dialtune.trainers import rl_run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)


def recipe(kind: str = "gpt2", **settings: Any) -> str:
    """The name of a recipe file: rewards that read words alone, nothing to download."""
    values: dict[str, Any] = {
        "method": "grpo", "model": str(start_policy(kind)), "task": "summarize", "data": data(), "output_dir": "run",
        "max_steps": 2, "rollout_batch_size": 4, "num_generations": 4, "max_completion_length": CAP, "eval_steps": 2,
        "learning_rate": 1e-3, "rewards": {"length": 1.0, "copy": 0.1}, "alarm_scorer": None, "bf16": False,
        "constraint": {"qualities": ["rougeL"], "baseline_prompts": 16}, "truncation": "mask",
    }  # fmt: skip
    Path("r.yaml").write_text(json.dumps(values | settings))  # JSON is YAML
    return "r.yaml"


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# recipes


def test_three_mistakes_are_three_lines_and_load_no_torch():
    Path("r.yaml").write_text(
        "model: m\ndata: {train: t}\nmethod: grpo\nlearning_rte: 1\nnum_generations: 1\nbeta: 0\n"
    )
    for arguments in (["rl", "r.yaml"], ["doctor", "rl", "r.yaml"]):
        code = (
            f"import sys\nfrom dialtune.cli.app import run_command\ncode = run_command({arguments!r})\n"
            "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\nsys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines() == [
            "r.yaml:4:1: learning_rte: unknown key; did you mean 'learning_rate'?",
            "r.yaml:5:18: num_generations: got 1; grpo needs at least 2, its baseline is the other completions of a "
            "prompt; try 4",
            "r.yaml:6:7: beta: got 0; nothing then holds the policy near its start; set kl_off: true if that is meant",
            "3 problems, nothing was run. Every key with its range: dialtune config explain rl",
        ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rewards": {"toxcity": 1.0}}, "no reward 'toxcity'; known: toxicity, relevance, relevance_dialogue,"),
        ({"beta": 0}, "beta: got 0; nothing then holds the policy near its start; set kl_off: true if that is meant"),
        ({"kl_off": True}, "beta: got 0.05; kl_off is true as well; keep one of the two"),
        (
            {"constraint": {"qualities": ["repetition"]}},
            "constraint.qualities.0: got 'repetition'; allowed list of relevance, relevance_dialogue, "
            "relevance_reference, rougeL, no_repetition, no_echo; try no_repetition",
        ),
        ({"truncation": "bootstrap"}, "bootstrap needs the value head of method: ppo; use penalise or mask"),
    ],
)
def test_a_recipe_that_contradicts_itself_exits_2_with_the_way_out(settings, line, capsys):
    assert run_command(["rl", recipe(**settings)]) == 2
    found = errors(capsys)
    assert line in found[0]
    assert found[-1].startswith("1 problem, nothing was run.")
    assert not Path("run").exists()


def test_a_scorer_that_does_not_exist_is_named(capsys):
    assert run_command(["rl", recipe(rewards={"toxicity:minilmm": 1.0})]) == 2
    assert errors(capsys)[0].startswith("dialtune: no scorer 'minilmm'; did you mean 'minilm'?")


def test_another_rank_than_the_adapters_is_refused(capsys):
    assert run_command(["rl", recipe(model=str(start_adapter("gpt2")), lora={"r": 8})]) == 2
    assert errors(capsys) == [
        f"dialtune: lora.r: got 8; {start_adapter('gpt2')} is an adapter of rank 4, and training goes on with it; "
        "set lora: {r: 4}"
    ]


def test_rl_wants_one_recipe_and_the_doctor_wants_one_at_all(capsys):
    assert run_command(["rl", "a.yaml", "-c", "b.yaml"]) == 2
    assert "RECIPE and --config are the same thing; give one" in capsys.readouterr().err
    assert run_command(["doctor", "rl"]) == 2
    assert "give a recipe: dialtune doctor rl RECIPE" in capsys.readouterr().err


# rewards and references that are wrong


def save_classifier(folder: Path, id2label: Mapping[int, str]) -> str:
    """A tiny BERT that has learned the packaged probes' toxic texts as label 1, whatever `id2label` calls them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    probes = [p for p in load_probes() if p.family in ("toxic", "clean", "identity", "neutral", "polite")]
    texts, wanted = [p.text for p in probes], torch.tensor([int(p.family == "toxic") for p in probes])
    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"], show_progress=False, vocab_size=2000)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0, id2label=dict(id2label), hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    module = BertForSequenceClassification(config)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        module(**batch, labels=wanted).loss.backward()
        optimizer.step()
    module.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_with_inverted_labels_is_refused_and_the_right_one_is_not(tmp_path, capsys):
    right = save_classifier(tmp_path / "right", {0: "nothate", 1: "hate"})
    swapped = save_classifier(tmp_path / "swapped", {0: "hate", 1: "nothate"})
    assert run_command(["rl", recipe(rewards={f"toxicity:{swapped}": 1.0})]) == 1
    refused = next(line for line in errors(capsys) if "D21" in line)
    assert f"D21: reward 'toxicity:{swapped}' is upside down: mean " in refused
    assert f"on {sum(probe.family == 'toxic' for probe in load_probes())} toxic probes" in refused
    assert "clean text must earn more" in refused
    assert "It reads label 'hate' of the scorer" in refused
    assert not list(Path("run").glob("checkpoint-*"))
    # the same classifier, asked for the label that means clean
    assert run_command(["doctor", "rl", recipe(rewards={f"toxicity:{right}#nothate": 1.0})]) == 1
    assert "is upside down" in capsys.readouterr().out
    run_command(["doctor", "rl", recipe(rewards={f"toxicity:{right}": 1.0})])
    assert "is upside down" not in capsys.readouterr().out


def test_a_reference_that_is_the_wrong_model_is_refused(monkeypatch, capsys):
    """The adapter switched off, where the start policy is an adapter: the raw base model."""
    monkeypatch.setattr(rl_run, "open_reference", lambda model, start, **loading: Reference(model, "base"))
    arguments = ["rl", recipe("gpt2", model=str(start_adapter("gpt2")), lora={"r": 4})]
    assert run_command(arguments) == 1
    lines = errors(capsys)
    wrong = [line for line in lines if "D10" in line]
    assert len(wrong) == 1
    assert "nats per token before any update: it is not the start policy" in wrong[0]
    assert not list(Path("run").glob("checkpoint-*"))
    assert not Path("run/metrics.jsonl").exists()
    assert "D10" in json.loads(Path("run/run.json").read_text())["outcome"]


def test_a_constraint_on_what_the_start_policy_lacks_is_refused(capsys):
    Path("rows.jsonl").write_text(Path(data()["train"]).read_text().replace(" now", "xyz").replace('y": "', 'y": "zz'))
    assert run_command(["rl", recipe(data={"train": "rows.jsonl"})]) == 1
    assert any("constraint 'rougeL': mean 0.0" in line for line in errors(capsys))


# doctor rl


def test_the_doctor_prints_a_line_for_each_check_and_exits_0(capsys):
    assert run_command(["doctor", "rl", recipe()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all well"
    names = [line.split()[0] for line in lines[:-1]]
    assert {f"D{n:02}" for n in range(1, 25)} - {"D15"} == set(names)  # D15 is of the value head
    assert not Path("run").exists()


def test_a_reward_that_gibberish_would_earn_is_told_before_the_run(capsys):
    """Civility alone, held by nothing: the plain way to a policy that says thank you."""
    alone = recipe(rewards={"copy": -1.0, "toxicity:lexicon": 1.0}, constraint=None)
    assert run_command(["doctor", "rl", alone]) == 0
    lines = capsys.readouterr().out.splitlines()
    advice = [line for line in lines if line.startswith("? D24")]
    assert len(advice) == 1
    assert "and no constraint is against it: a policy may learn that." in advice[0]
    assert lines[-1] == "all well, but for what is marked with ?"
    assert run_command(["rl", alone]) == 0
    told = capsys.readouterr()
    assert "no constraint is against it" in told.out + told.err


def test_the_doctor_opens_the_model_that_it_is_told_and_names_a_wrong_key(capsys):
    assert run_command(["doctor", "rl", recipe(), "--model", "nowhere/at-all"]) == 2
    assert "nowhere/at-all" in capsys.readouterr().err
    assert run_command(["doctor", recipe(), "--set", "num_generatons=4"]) == 2
    assert "num_generatons" in capsys.readouterr().err
    assert run_command(["doctor", "--model", "m"]) == 2
    assert "give one: dialtune doctor RECIPE" in capsys.readouterr().err


def test_the_doctor_marks_what_failed_and_exits_1(capsys):
    changes = ["--set", "max_completion_length=2", "--set", "constraint=null"]
    assert run_command(["doctor", "rl", recipe(), *changes]) == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("! D04")]
    assert len(lines) == 1
    assert "of rows hit the cap of 2 tokens: raise max_completion_length" in lines[0]
    failed = sum(line.startswith("! ") for line in out.splitlines())
    assert f"{failed} of " in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("checks failed, marked with !")


# from end to end


@pytest.mark.parametrize(("kind", "lora"), [("bart", None), ("llama", {"r": 4, "dropout": 0.0})], ids=["full", "lora"])
def test_a_recipe_becomes_a_run_folder_that_evaluate_can_read(kind, lora, capsys):
    method = "ppo" if lora is None else "rloo"
    assert run_command(["rl", recipe(kind, lora=lora), "--method", method, "--max_steps", "3", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    result = out.partition(": done. Next: dialtune evaluate --task summarize --model ")[0]
    assert result.startswith("run/checkpoint-")
    assert "update 3/3: " in err
    assert "measuring the start policy" in err
    assert " tokens 0." not in err  # tokens, not the reward of the name `length`
    folder = Path("run")
    assert {"config.yaml", "run.json", "metrics.jsonl", "rollouts.jsonl"} <= {path.name for path in folder.iterdir()}
    rows = updates(folder)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert f"tokens {rows[-1]['tokens']:.3f}" in err
    record = json.loads((folder / "run.json").read_text())
    assert record["command"].endswith("--seed 5") or record["outcome"] == "done"
    assert (record["method"], record["seed"], record["outcome"]) == (method, 5, "done")
    assert record["rewards"] == {"rewards": {"length": 1.0, "copy": 0.1}, "qualities": ["rougeL"], "alarm": None}
    journal = (folder / "rollouts.jsonl").read_text().splitlines()
    assert len(journal) == 3 * 16
    # again is refused; --resume finds nothing left to do; the result can be evaluated
    assert run_command(["rl", "run/config.yaml"]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert run_command(["rl", "run/config.yaml", "--resume"]) == 0
    more = ["--limit", "2", "--max-new-tokens", "5", "--metric", "rougeL", "--out", "e"]
    assert run_command(["evaluate", "--model", result, "--data", data()["validation"], *more]) == 0


def test_the_resolved_recipe_fed_back_gives_the_same_run():
    assert run_command(["rl", recipe(max_steps=3, num_iterations=2, eval_steps=0)]) == 0
    assert run_command(["rl", "run/config.yaml", "--output_dir", "again"]) == 0
    one, two = (load_file(f"{name}/checkpoint-3/model.safetensors") for name in ("run", "again"))
    assert all(two[name].equal(weight) for name, weight in one.items())
    assert Path("run/rollouts.jsonl").read_bytes() == Path("again/rollouts.jsonl").read_bytes()
    texts = [Path(f"{name}/config.yaml").read_text().replace("again", "run") for name in ("run", "again")]
    assert texts[0] == texts[1]


def test_a_stop_rule_exits_1_and_names_the_checkpoint(capsys):
    assert run_command(["rl", recipe(kl_target=1e-5, max_steps=8, learning_rate=3e-3)]) == 1
    line = next(line for line in errors(capsys) if line.startswith("dialtune: "))
    assert "stopped: kl: " in line
    assert "is saved; the run's result is checkpoint-" in line
