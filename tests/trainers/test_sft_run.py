"""A recipe to a run folder: refusals, what is recorded, the same run again from its own config.yaml."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model

from dialtune.config.loading import load_config
from dialtune.config.schema import RunConfig
from dialtune.data.reading import read_examples
from dialtune.errors import CheckpointError, ConfigError, DataError
from dialtune.models.loading import read_notes
from dialtune.runs import read_rows
from dialtune.trainers import setup, sft, sft_run
from dialtune.trainers.sft_run import preview_sft, run_sft, with_compute_dtype

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a saved model."""
    folders = {}
    for kind in ("bart", "gpt2", "llama", "t5"):
        folders[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
        make_model(kind).save(folders[kind])
    return folders


def _write_rows(path: Path, n: int, **more: str) -> Path:
    rows = [
        {"id": f"d{i}", "dialogue": f"Anna: Hello, number {i}.\nBen: See you at {i}.", "summary": f"They meet at {i}."}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return _write_rows(tmp_path / "rows.jsonl", 6)


def _config(model: Path, rows: Path, out: Path, *, data: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(rows), **(data or {})},
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "bf16": False,
    }
    return RunConfig.model_validate(values | settings)


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if not key.endswith("_s")} for row in read_rows(run / "metrics.jsonl")]


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# what a run leaves


def test_the_resolved_recipe_fed_back_gives_the_same_run(tiny, rows, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    config = _config(tiny["t5"], rows, first, bf16="auto", lora={"r": 2}, seed=9, data={"validation": str(rows)})
    one = run_sft(config)
    fed_back = load_config(first / "config.yaml", overrides=[f"output_dir={second}"])
    assert fed_back.bf16 in (True, False)  # what this machine chose is written down
    two = run_sft(fed_back)
    assert one.name == two.name
    assert _metrics(first) == _metrics(second)
    name = "adapter_model.safetensors"
    assert _same(load_file(one / name), load_file(two / name))
    texts = [(folder / "config.yaml").read_text().replace(str(folder), "") for folder in (first, second)]
    assert texts[0] == texts[1]


def test_run_json_says_what_ran_on_what(tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/somewhere/bin/dialtune", "sft", "my recipe.yaml", "--seed", "9"])
    run = tmp_path / "run"
    result = run_sft(_config(tiny["llama"], rows, run, seed=9, lora={"r": 2}, data={"validation": str(rows)}))
    record = json.loads((run / "run.json").read_text())
    assert record["format"] == "dialtune.run/1"
    assert record["command"] == "dialtune sft 'my recipe.yaml' --seed 9"
    assert (record["task"], record["seed"], record["cut_targets"], record["dropped_turns"]) == ("summarize", 9, 0, 0)
    data = read_examples(rows)
    wanted = {"name": data.name, "rows": 6, "fingerprint": data.fingerprint, "counts": dict(data.counts)}
    assert record["data"] == {"train": wanted, "validation": wanted}
    assert (record["model"]["name"], record["model"]["adapter"]) == (str(tiny["llama"]), "lora-r2")
    trainable = sum(t.numel() for t in load_file(result / "adapter_model.safetensors").values())
    total = sum(p.numel() for p in make_model("llama").module.parameters()) + trainable
    assert record["parameters"] == {"trainable": trainable, "total": total}
    assert {"versions", "platform", "threads", "devices", "commit"} <= record.keys()
    assert record["starts"][0]["resumed_from"] is None
    assert (record["outcome"], record["notes"]) == ("done", [f"result: {result.name}"])
    assert record["end"] >= record["starts"][0]["at"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/dialtune/__main__.py", "sft", "r.yaml"], "dialtune sft r.yaml"),
        (["train.py"], "train.py"),
        (["/x/ipykernel_launcher.py", "-f", "/x/kernel.json"], "ipykernel_launcher.py"),
        (["/x/colab_kernel_launcher.py", "-f", "/x/kernel.json"], "colab_kernel_launcher.py"),
    ],
)
def test_the_command_names_the_program_and_not_its_folder(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert setup.command_line() == command
    assert shlex.split(command)


def test_the_checkpoint_remembers_how_to_ask_the_model(tiny, rows, tmp_path):
    result = run_sft(_config(tiny["t5"], rows, tmp_path / "run", template="plain", max_prompt_length=64))
    source = {"name": "rows.jsonl", "rows": 6, "fingerprint": read_examples(rows).fingerprint}
    notes = {"task": "summarize", "template": "plain", "max_prompt_length": 64, "trained_on": [source]}
    assert read_notes(str(result)) == notes
    assert read_notes(str(tmp_path / "run")) == notes


def test_a_failed_run_says_so_in_its_record(tiny, rows, tmp_path):
    def fail(kind: str, facts: Any) -> None:
        if kind == "step":
            raise ZeroDivisionError("of the listener\nsecond line")

    with pytest.raises(ZeroDivisionError):
        run_sft(_config(tiny["gpt2"], rows, tmp_path / "run"), on_event=fail)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"] == "ZeroDivisionError: of the listener"


def test_rows_of_a_run_that_never_saved_are_gone_after_a_new_start(tiny, rows, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    run_sft(_config(tiny["gpt2"], rows, run))
    assert [row["step"] for row in _metrics(run)] == [1, 2, 3]


def test_bf16_auto_is_decided_for_the_machine(monkeypatch, tmp_path):
    config = _config(tmp_path, tmp_path, tmp_path, bf16="auto")
    for fast in (True, False):
        monkeypatch.setattr(setup, "bf16_is_faster", lambda device, fast=fast: fast)
        assert with_compute_dtype(config).bf16 is fast
    monkeypatch.setattr(setup, "bf16_is_faster", lambda device: True)
    assert with_compute_dtype(_config(tmp_path, tmp_path, tmp_path, bf16="auto", fp16=True)).bf16 is False
    assert with_compute_dtype(_config(tmp_path, tmp_path, tmp_path, bf16=False)).bf16 is False


def test_an_adapter_of_a_bf16_run_is_fp32_beside_a_bf16_base(tiny, rows, tmp_path):
    model = sft_run.open_for_training(_config(tiny["llama"], rows, tmp_path, bf16=True, lora={"r": 2}))
    found = {p.requires_grad: p.dtype for p in model.module.parameters()}
    assert found == {True: torch.float32, False: torch.bfloat16}
    whole = sft_run.open_for_training(_config(tiny["llama"], rows, tmp_path, bf16=True))
    assert {p.dtype for p in whole.module.parameters()} == {torch.float32}
    result = run_sft(_config(tiny["llama"], rows, tmp_path / "run", bf16=True, lora={"r": 2}))
    assert {t.dtype for t in load_file(result / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("lora", [None, {"r": 2, "dropout": 0.1}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_recomputed_activations_give_the_same_weights(tiny, rows, tmp_path, kind, lora):
    results = []
    for checkpointing in (False, True):
        # Gradients of a tied embedding add up in another order; a large epsilon keeps Adam from dividing by near zero.
        config = _config(
            tiny[kind], rows, tmp_path / str(checkpointing), lora=lora, gradient_checkpointing=checkpointing,
            adam_epsilon=1e-3,
        )  # fmt: skip
        model = sft_run.open_for_training(config)
        found = [getattr(part, "gradient_checkpointing", False) for part in model.core.modules()]
        assert any(found) == checkpointing
        folder = run_sft(config)
        results.append(load_file(folder / ("adapter_model.safetensors" if lora else "model.safetensors")))
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, rtol=1e-4, atol=1e-6, msg=name)


# validation


def test_validation_writes_texts_only_where_scores_are_asked_for(tiny, rows, tmp_path, monkeypatch):
    config = _config(tiny["t5"], rows, tmp_path / "run", data={"validation": str(rows)}, eval_steps=2)
    monkeypatch.setattr(sft_run, "generate", None)
    run_sft(config)
    found = [{key for key in row if key.startswith("eval_")} for row in _metrics(tmp_path / "run")]
    assert found == [set(), {"eval_loss"}, {"eval_loss"}]


def test_scores_of_generated_texts_are_recorded_and_choose(tiny, rows, tmp_path, monkeypatch):
    asked: list[int] = []
    values = iter([5.0, 20.0, 10.0])

    def generate(model: Any, prompts: Any, sampling: Any, *, batch_size: int, seed: int) -> Any:
        from dialtune.types import Completion

        asked.append(len(prompts))
        assert (sampling.max_new_tokens, sampling.num_beams, batch_size, seed) == (7, 2, 3, 42)
        share = next(values)
        texts = ["They meet at 0." if share == 20.0 else "They"] * len(prompts)
        return [Completion(p.example_id, text, (), "stop") for p, text in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(sft_run, "generate", generate)
    config = _config(
        tiny["t5"], rows, tmp_path / "run", data={"validation": str(rows)}, eval_steps=1,
        metric_for_best_model="rougeL", evaluation={"metrics": ["bleu"], "max_rows": 4},
        generation={"max_new_tokens": 7, "num_beams": 2, "batch_size": 3},
    )  # fmt: skip
    result = run_sft(config)
    assert asked == [4, 4, 4]
    metrics = _metrics(tmp_path / "run")
    assert all({"eval_loss", "eval_rougeL", "eval_bleu"} <= row.keys() for row in metrics)
    # By hand, ROUGE-L F1 of "They" against "They meet at i": P 1, R 1/4, F 0.4. Of "They meet at 0": 1 for the first
    # row, 3/4 for the other three.
    assert [row["eval_rougeL"] for row in metrics] == pytest.approx([40.0, 81.25, 40.0])
    assert result.name == "checkpoint-2"


def test_prompts_of_generated_scores_fit_the_model(tiny, tmp_path):
    # BART reads 256 tokens here; the recipe's budget is 1,024.
    long = "\n".join(f"Anna: Hello again, this is turn {i} of a long dialogue." for i in range(60))
    rows = _write_rows(tmp_path / "rows.jsonl", 2, dialogue=long)
    config = _config(
        tiny["bart"], rows, tmp_path / "run", data={"validation": str(rows)}, max_steps=1,
        metric_for_best_model="rougeL", generation={"max_new_tokens": 2},
    )  # fmt: skip
    run_sft(config)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dropped_turns"] > 0


# data


def test_data_without_the_reference_names_the_keys_that_help(tiny, rows, tmp_path):
    with pytest.raises(DataError) as caught:
        run_sft(_config(tiny["gpt2"], rows, tmp_path / "run", data={"reference": "summary2"}))
    assert "rows.jsonl: none of 6 rows has a reference 'summary2' to learn from" in str(caught.value)
    assert str(caught.value).endswith("name the column with data.reference or data.columns")


def test_rows_without_a_reference_are_left_out_of_training(tiny, tmp_path):
    path = _write_rows(tmp_path / "rows.jsonl", 4)
    with path.open("a") as file:
        file.write(json.dumps({"id": "x", "dialogue": "Anna: Hi.\nBen: Ho.", "summary": " "}) + "\n")
    data = {"on_bad_rows": "skip", "max_bad_fraction": 0.5}
    prepared = sft_run.prepare(_config(tiny["gpt2"], path, tmp_path / "run", data=data))
    assert [row.example_id for row in prepared.rows] == ["d0", "d1", "d2", "d3"]


def test_cleaning_and_limits_apply_before_training(tiny, tmp_path):
    path = _write_rows(tmp_path / "rows.jsonl", 6, dialogue="Anna: Tom &amp; Jerry.\nBen: Yes.")
    data = {"clean": ["html_entities"], "max_train_rows": 4, "validation": str(path), "max_validation_rows": 2}
    prepared = sft_run.prepare(_config(tiny["gpt2"], path, tmp_path / "run", data=data))
    assert (len(prepared.rows), len(prepared.validation_rows)) == (4, 2)
    assert prepared.train.examples[0].messages[0].content == "Tom & Jerry."


def test_targets_over_the_cap_are_counted(tiny, rows, tmp_path):
    notes: list[str] = []
    config = _config(tiny["gpt2"], rows, tmp_path / "run", max_completion_length=3)
    run_sft(config, on_event=lambda kind, facts: notes.append(facts["text"]) if kind == "note" else None)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cut_targets"] == 6
    assert notes[0].endswith("; 6 rows (dialogsum); 3 updates, 3 per epoch; 6 targets cut")


# starting again


def test_a_folder_with_checkpoints_is_refused_without_resume(tiny, rows, tmp_path):
    config = _config(tiny["gpt2"], rows, tmp_path / "run")
    run_sft(config)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        run_sft(config)
    assert str(caught.value) == (
        f"output_dir: {tmp_path / 'run'} already holds checkpoint-3; go on with --resume, or choose another output_dir"
    )
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_resume_of_an_empty_folder_is_a_new_run(tiny, rows, tmp_path):
    assert run_sft(_config(tiny["gpt2"], rows, tmp_path / "run"), resume="newest").name == "checkpoint-3"


def test_a_resume_under_another_recipe_lists_the_changed_keys(tiny, rows, tmp_path):
    run = tmp_path / "run"
    run_sft(_config(tiny["gpt2"], rows, run))
    config_before = (run / "config.yaml").read_bytes()
    changed = _config(tiny["gpt2"], rows, run, learning_rate=1e-3, max_steps=5)
    with pytest.raises(ConfigError) as caught:
        run_sft(changed, resume="newest")
    assert str(caught.value) == (
        f"{run / 'checkpoint-3'}: saved under another recipe or other data; changed keys: max_steps, learning_rate. "
        "Undo the change, start in another output_dir, or go on all the same with --force"
    )
    assert (run / "config.yaml").read_bytes() == config_before
    assert run_sft(changed, resume="newest", force=True).name == "checkpoint-5"
    assert [row["learning_rate"] for row in _metrics(run)][3:] == pytest.approx([1e-3 * 2 / 5, 1e-3 * 1 / 5])


def test_a_run_of_a_version_that_lacked_a_key_goes_on_unless_the_key_is_set(tiny, rows, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as older:
        older.setattr(RunConfig, "fingerprint", "hash of fewer keys")
        run_sft(_config(tiny["gpt2"], rows, run))
    text = (run / "config.yaml").read_text()
    assert "on_save_error: stop\n" in text
    (run / "config.yaml").write_text(text.replace("on_save_error: stop\n", ""))
    with pytest.raises(ConfigError, match="changed keys: on_save_error"):
        run_sft(_config(tiny["gpt2"], rows, run, on_save_error="continue"), resume="newest")
    assert run_sft(_config(tiny["gpt2"], rows, run), resume="newest").name == "checkpoint-3"


def test_a_resume_with_other_rows_is_refused(tiny, rows, tmp_path):
    run = tmp_path / "run"
    run_sft(_config(tiny["gpt2"], rows, run))
    _write_rows(rows, 7)
    with pytest.raises(ConfigError, match=r"saved under another recipe or other data; the data changed\. Undo"):
        run_sft(_config(tiny["gpt2"], rows, run), resume="newest")


def test_a_moved_run_goes_on(tiny, rows, tmp_path):
    run_sft(_config(tiny["gpt2"], rows, tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run_sft(_config(tiny["gpt2"], rows, tmp_path / "moved"), resume="newest").name == "checkpoint-3"


# checkpoints that could not be written


def _full_disk_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = sft.save_checkpoint

    def save(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        if step in steps:
            raise CheckpointError(f"checkpoint-{step}: no room")
        return write(folder, step, *args, **kwargs)

    monkeypatch.setattr(sft, "save_checkpoint", save)


def test_the_result_is_a_checkpoint_that_exists(tiny, rows, tmp_path, monkeypatch):
    _full_disk_at({3}, monkeypatch)
    config = _config(tiny["gpt2"], rows, tmp_path / "run", save_steps=1, on_save_error="continue")
    assert run_sft(config) == tmp_path / "run" / "checkpoint-2"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["notes"] == ["result: checkpoint-2"]


def test_a_run_that_could_save_nothing_fails_at_its_end(tiny, rows, tmp_path, monkeypatch):
    _full_disk_at({1, 2, 3}, monkeypatch)
    config = _config(tiny["gpt2"], rows, tmp_path / "run", save_steps=1, on_save_error="continue")
    with pytest.raises(CheckpointError, match="trained, but no checkpoint could be written; free some space"):
        run_sft(config)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["outcome"].startswith("CheckpointError")


# the dry run


@pytest.mark.parametrize("kind", ["bart", "gpt2", "llama", "t5"])
def test_the_dry_run_marks_exactly_the_learned_tokens(tiny, rows, tmp_path, kind):
    config = _config(tiny[kind], rows, tmp_path / "run", template="plain")
    lines = preview_sft(config)
    model = make_model(kind)
    headings = [i for i, line in enumerate(lines) if line.endswith("learned tokens in [brackets]")]
    assert [lines[i] for i in headings] == [f"example d{i}: learned tokens in [brackets]" for i in (0, 1)]
    for number, at in enumerate(headings):
        shown = lines[at + 1]
        response = model.tokens(model.response_ids(f"They meet at {number}."))
        learned = "".join(f"[{piece}]" for piece in response)
        assert shown.endswith(f" {learned}")
        assert response[-1] in ("</s>", "<|endoftext|>", "<|im_end|>")
        prompt = shown.removesuffix(learned)
        assert "[" not in prompt
        assert f"number{'Ġ' if kind in ('bart', 't5') else ' '}{number}." in prompt.replace(" ", " ")
        assert "They" not in prompt
    assert not (tmp_path / "run").exists()


def test_the_dry_run_counts_tokens_and_shows_the_resolved_recipe(tiny, rows, tmp_path):
    lines = preview_sft(_config(tiny["llama"], rows, tmp_path / "run", lora={"r": 2}, seed=5))
    assert "data_seed: 5" in lines[0]  # resolved
    prepared = sft_run.prepare(_config(tiny["llama"], rows, tmp_path / "run"))
    lengths = sorted(row.length for row in prepared.rows)
    learned = sum(len(row.response) for row in prepared.rows)
    text = next(line for line in lines if line.startswith("tokens: "))
    assert text == (
        f"tokens: {sum(lengths)} in all, {learned} of them learned; per row median {lengths[3]}, longest {lengths[-1]}"
    )
    assert re.search(r"memory: about 0\.00 GB for weights, gradients and optimizer", "\n".join(lines))


def test_the_result_of_a_run_is_the_folder_that_plain_transformers_opens(tiny, rows, tmp_path):
    from transformers import AutoModelForCausalLM

    result = run_sft(_config(tiny["llama"], rows, tmp_path / "run"))
    opened = AutoModelForCausalLM.from_pretrained(result)
    trained = _weights(result)
    assert all(torch.equal(trained[name], p) for name, p in opened.named_parameters() if name in trained)
    assert not _same(trained, _weights(tiny["llama"]))
