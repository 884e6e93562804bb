"""sft, generate, evaluate, compare, report: from the command line to files, on tiny models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rl_tiny import data, start_policy

from dialtune.cli.app import run_command

DIALOGUES = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(tmp_path):
    """A small DialogSum-like file whose gold text depends on the dialogue."""
    lines = [
        {"id": f"d{i}", "dialogue": f"#Person1#: I have {i} apples.\n#Person2#: Then give me {i % 7}.",
         "summary": f"#Person1# has {i} apples and #Person2# wants {i % 7}."}
        for i in range(DIALOGUES)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def score(texts: list[str], out: str, *more: str) -> int:
    Path("p.txt").write_text("\n".join(texts))
    return run_command(["evaluate", "--predictions", "p.txt", "--data", "rows.jsonl", "--out", out, *more])


# evaluate


def test_a_file_of_perfect_predictions_scores_a_hundred_with_its_signature(rows, capsys):
    assert score([row["summary"] for row in rows], "e", "--metric", "rougeL") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "p.txt on rows.jsonl, reference first: 40 of 40 rows scored, 0 empty, 0 cut at the cap"
    assert re.fullmatch(r"rougeL +100\.00  \[100\.00, 100\.00\] +n 40  #[0-9a-f]{8}", lines[1])
    assert lines[2] == "written: e/eval.json"
    assert json.loads(Path("e/eval.json").read_text())["scores"]["rougeL"]["value"] == 100.0


def test_the_published_baseline_scores_as_published(shared_data, capsys):
    source = shared_data / "dialogsum"
    arguments = ["--predictions", str(source / "bart_large_baseline_outputs.txt"), "--reference", "summary1"]
    assert run_command(["evaluate", *arguments, "--data", str(source / "dialogsum.test.jsonl.gz"), "--out", "x"]) == 0
    out = capsys.readouterr().out
    found = {line.split()[0]: line.split()[1] for line in out.splitlines() if "#" in line}
    # Values of rouge_score 0.1.2 and sacreBLEU 2.6 on these 500 outputs, as given with the data.
    assert {
        "rouge1": "45.91",
        "rouge2": "21.32",
        "rougeL": "38.71",
        "bleu": "20.57",
        "chrf": "39.91",
    }.items() <= found.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x", "--data", "rows.jsonl"], "--model or --predictions is needed"),
        (["--out", "x", "--data", "d", "--model", "m", "--predictions", "p"],
         "give --model or --predictions, not both"),
        (["--out", "x", "--model", "m"], "--data is needed"),
        (["--data", "rows.jsonl", "--model", "m"], "--out is needed"),
        (["--data", "rows.jsonl", "--predictions", "p", "--out", "x"], "p: no such file; --predictions takes"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(arguments, message, rows, capsys):
    assert run_command(["evaluate", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"dialtune: {message}")


def test_a_broken_row_of_ten_thousand_is_named_and_exits_3(capsys):
    good = json.dumps({"dialogue": "A: hi\nB: ho", "summary": "They greet."})
    lines = [good] * 10_000
    lines[4710] = good[:-1]
    Path("rows.jsonl").write_text("\n".join(lines))
    assert run_command(["evaluate", "--predictions", "p", "--data", "rows.jsonl", "--out", "x"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("dialtune: rows.jsonl:4711: ")
    assert len(err.splitlines()) == 1


def test_an_unknown_model_name_is_one_clear_message(rows, capsys):
    assert run_command(["evaluate", "--model", "smollm2-136m", "--data", "rows.jsonl", "--out", "x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("dialtune: smollm2-136m: no such model")
    assert len(err.splitlines()) <= 3


def test_a_model_is_evaluated_into_eval_json(rows, saved_model, capsys):
    folder = str(saved_model("t5"))
    more = ["--limit", "3", "--max-new-tokens", "4", "--metric", "bleu", "--seed", "5"]
    assert run_command(["evaluate", "--model", folder, "--data", "rows.jsonl", "--out", "e", *more]) == 0
    found = json.loads(Path("e/eval.json").read_text())
    assert found["n_total"] == 3
    assert found["model"]["family"] == "encoder-decoder"
    assert found["decoding"] == {
        "strategy": "greedy", "num_beams": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 4,
        "samples_per_prompt": 1, "seed": 5,
    }  # fmt: skip
    assert len(found["data"]["template_sha256"]) == 64


# compare


def test_compare_prints_verdicts_writes_them_and_holds_gates(rows, capsys):
    score([f"{i % 7} apples" for i in range(DIALOGUES)], "before", "--metric", "rougeL")
    score([row["summary"] for row in rows], "after", "--metric", "rougeL")
    capsys.readouterr()
    assert run_command(["compare", "before", "after", "--require", "rougeL>=+30%"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"rougeL \d+\.\d\d -> 100\.00, \+.* n 40: improved", lines[0])
    assert lines[1] == "written: after/compare.json"
    assert json.loads(Path("after/compare.json").read_text())["scores"]["rougeL"]["verdict"] == "improved"


def test_a_gate_that_is_not_met_exits_4_after_the_result_is_written(rows, capsys):
    texts = [row["summary"] for row in rows]
    score(texts, "before", "--metric", "rougeL")
    score(texts, "after", "--metric", "rougeL")
    capsys.readouterr()
    assert (
        run_command(["compare", "before/eval.json", "after/eval.json", "--require", "rougeL>=+30%", "--out", "c"]) == 4
    )
    assert capsys.readouterr().err.startswith("dialtune: rougeL>=+30%: not met: ")
    assert Path("c/compare.json").exists()


def test_a_gate_that_cannot_be_read_costs_no_comparison(capsys):
    assert run_command(["compare", "x", "y", "--require", "rougeL>30"]) == 2
    assert "--require 'rougeL>30': not a gate" in capsys.readouterr().err


def test_unlike_evaluations_are_refused_with_exit_2(rows, capsys):
    texts = [row["summary"] for row in rows]
    score(texts, "before", "--metric", "rougeL")
    score(texts[:3], "after", "--metric", "rougeL", "--limit", "3")
    capsys.readouterr()
    assert run_command(["compare", "before", "after"]) == 2
    assert "fingerprint" in capsys.readouterr().err


# generate


def test_generate_writes_one_row_a_dialogue_in_their_order(rows, saved_model, capsys):
    arguments = ["--model", str(saved_model("llama")), "--data", "rows.jsonl", "--max-new-tokens", "3"]
    assert run_command(["generate", *arguments, "--limit", "5", "--batch-size", "2", "--out", "c.jsonl"]) == 0
    found = [json.loads(line) for line in Path("c.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [row["id"] for row in rows[:5]]
    assert {"id", "completion", "finish", "dropped_turns"} == set(found[0])
    assert capsys.readouterr().out.startswith("written: c.jsonl (5 completions, ")


def test_generate_answers_one_prompt_on_the_terminal(saved_model, capsys):
    arguments = ["generate", "--model", str(saved_model("llama")), "--prompt", "Hello", "--max-new-tokens", "5"]
    assert run_command(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 1


def test_what_generate_wrote_can_be_evaluated(rows, saved_model):
    arguments = ["--model", str(saved_model("bart")), "--data", "rows.jsonl", "--max-new-tokens", "3", "--limit", "4"]
    assert run_command(["generate", *arguments, "--out", "c.jsonl"]) == 0
    assert (
        run_command(["evaluate", "--predictions", "c.jsonl", "--data", "rows.jsonl", "--limit", "4", "--out", "e"]) == 0
    )


# sft

TINY = ["--max_steps", "2", "--per-device-train-batch-size", "2", "--set", "data.max_train_rows=8"]


def test_sft_by_flags_alone_trains_saves_and_says_what_is_next(rows, saved_model, capsys):
    flags = [
        "--model",
        str(saved_model("t5")),
        "--data",
        "rows.jsonl",
        "--output-dir",
        "run",
        "--learning_rate",
        "1e-3",
    ]
    assert run_command(["sft", *flags, *TINY]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("run/checkpoint-2: done. Next: dialtune evaluate --model run/checkpoint-2 ")
    assert "update 2/2: loss " in err
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
    # the same again is refused, --resume finds nothing left to do, and the result can be evaluated
    assert run_command(["sft", *flags, *TINY]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert run_command(["sft", "run/config.yaml", "--resume"]) == 0
    more = ["--limit", "2", "--max-new-tokens", "3", "--metric", "rougeL"]
    assert run_command(["evaluate", "--model", "run/checkpoint-2", "--data", "rows.jsonl", "--out", "e", *more]) == 0


def test_sft_dry_run_shows_the_mask_and_writes_nothing(rows, saved_model, capsys):
    flags = ["--model", str(saved_model("llama")), "--data", "rows.jsonl", "--output_dir", "run", "--dry-run"]
    assert run_command(["sft", *flags, *TINY, "--lora"]) == 0
    out = capsys.readouterr().out
    assert out.count("learned tokens in [brackets]") == 2
    assert "lora:\n  r: 16" in out
    assert not Path("run").exists()


def test_sft_with_mistakes_in_the_recipe_exits_2_and_loads_no_torch():
    Path("r.yaml").write_text("model: m\ndata: {train: t, validaton: v}\nlearning_rte: 1\nlora: {r: 0}\n")
    code = (
        "import sys\nfrom dialtune.cli.app import run_command\ncode = run_command(['sft', 'r.yaml'])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "r.yaml:2:18: data.validaton: unknown key; did you mean 'validation'?",
        "r.yaml:3:1: learning_rte: unknown key; did you mean 'learning_rate'?",
        "r.yaml:4:11: lora.r: got 0; allowed integer, at least 1 and at most 1,024; try 16",
        "3 problems, nothing was run. Every key with its range: dialtune config explain",
    ]


def test_sft_wants_one_recipe(capsys):
    assert run_command(["sft", "a.yaml", "-c", "b.yaml"]) == 2
    assert "RECIPE and --config are the same thing; give one" in capsys.readouterr().err


# report and recipes


def test_report_makes_one_file_of_a_run(rows, capsys):
    texts = [row["summary"] for row in rows]
    score(texts, "run/before", "--metric", "rougeL")
    score(texts, "run/after", "--metric", "rougeL")
    assert run_command(["compare", "run/before", "run/after", "--out", "run"]) == 0
    capsys.readouterr()
    assert run_command(["report", "run"]) == 0
    assert capsys.readouterr().out == "written: run/report.html\n"
    assert "<html" in Path("run/report.html").read_text()


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
REWARDED = [path for path in RECIPES if "\nmethod:" in path.read_text()]
LEARNED = [path for path in RECIPES if "\nsignals:" in path.read_text()]  # trained in test_reward_command.py


SUPERVISED = [path for path in RECIPES if path not in REWARDED + LEARNED]


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.stem)
def test_every_recipe_makes_two_updates_on_tiny_weights(path, saved_model):
    kind = next((kind for kind in ("bart", "t5") if kind in path.stem or "seq2seq" in path.stem), "llama")
    small = ["data.max_train_rows=4", "data.max_validation_rows=2", "per_device_train_batch_size=2", "max_steps=2"]
    sets = [part for text in [*small, "output_dir=run", "max_prompt_length=128"] for part in ("--set", text)]
    assert run_command(["sft", str(path), "--model", str(saved_model(kind)), *sets]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["eval_loss"] > 0


@pytest.mark.parametrize("path", REWARDED, ids=lambda path: path.stem)
def test_every_recipe_of_rewards_makes_two_updates_on_tiny_weights(path):
    kind = next((kind for kind in ("bart", "t5") if kind in path.stem), "llama")
    small = [
        "max_steps=2",
        "output_dir=run",
        "max_prompt_length=128",
        "rollout_batch_size=4",
        "max_completion_length=24",
    ]
    # A tiny model's noise is neither toxic nor relevant: what remains is everything else that the recipe says.
    small += ["rewards={length: 1.0}", "constraint=null", "alarm_scorer=null", "bf16=false", "rollout_batch_size=4"]
    small += [f"data.{name}={file}" for name, file in data().items()]
    sets = [part for text in small for part in ("--set", text)]
    assert run_command(["rl", str(path), "--model", str(start_policy(kind)), *sets]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["loss"] is not None for row in rows[1:])


# demo


def test_demo_passes_its_jobs_on_and_builds_the_report_of_the_folder(rows, monkeypatch, capsys):
    def run_demo(jobs, out, *, say, on_event, progress):
        say(f"jobs {jobs}")
        score(["x"] * DIALOGUES, f"{out}/summarize/before", "--metric", "rougeL")
        score([row["summary"] for row in rows], f"{out}/summarize/after", "--metric", "rougeL")
        run_command(["compare", f"{out}/summarize/before", f"{out}/summarize/after", "--out", f"{out}/summarize"])
        return {}

    monkeypatch.setattr("dialtune.labs.run_demo", run_demo)
    assert run_command(["demo", "--job", "summarize", "--out", "d"]) == 0
    out, err = capsys.readouterr()
    assert err == "jobs ['summarize']\n"
    assert out.endswith("report: d/report.html\n")
    assert Path("d/report.html").exists()


def test_demo_names_the_jobs_there_are(capsys):
    assert run_command(["demo", "--job", "sumarize"]) == 2
    assert "there are: summarize" in capsys.readouterr().err


# leaks and templates


def test_rows_that_training_has_seen_are_counted_in_eval_json(rows):
    texts = [row["summary"] for row in rows]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    assert score(texts, "e", "--metric", "rougeL", "--train", "train.jsonl") == 0
    assert json.loads(Path("e/eval.json").read_text())["data"]["leakage"]["exact"] == 5


def test_another_template_changes_what_is_recorded(rows, saved_model):
    common = ["evaluate", "--model", str(saved_model("bart")), "--data", "rows.jsonl", "--limit", "2"]
    small = ["--max-new-tokens", "2", "--metric", "rougeL"]
    assert run_command([*common, *small, "--out", "a"]) == 0
    assert run_command([*common, *small, "--out", "b", "--template", "plain"]) == 0
    hashes = {json.loads(Path(f"{side}/eval.json").read_text())["data"]["template_sha256"] for side in "ab"}
    assert len(hashes) == 2


def test_a_model_folder_with_a_pickle_is_refused_in_one_message(rows, saved_model, capsys):
    folder = saved_model("llama")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    capsys.readouterr()
    assert run_command(["evaluate", "--model", str(folder), "--data", "rows.jsonl", "--out", "x"]) == 2
    err = capsys.readouterr().err
    assert "pytorch_model.bin" in err
    assert len(err.splitlines()) <= 3
