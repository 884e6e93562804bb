"""What dialtune saves: others open it, its notes are kept, and a run folder stands for its result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dialtune.checkpoints import save_checkpoint
from dialtune.config.schema import DataConfig, LoraConfig, RunConfig
from dialtune.errors import ModelError
from dialtune.models import loading
from dialtune.models.loading import load_model, read_notes, resolve_folder, save_model
from dialtune.models.lora import attach_lora
from dialtune.models.seq2seq import Seq2SeqLM
from dialtune.trainers.sft_run import run_sft
from dialtune.types import Message, Prompt

SaveModel = Callable[[str], Path]
PROMPTS = [Prompt("0", (Message("user", "Hello Anna, why?"),), "plain"), Prompt("1", (Message("user", "No"),), "plain")]


def _logprobs(model: Any) -> Tensor:
    batch = model.training_batch(PROMPTS, ("They meet at the station.", "Yes."))
    with torch.no_grad():
        return model.logprobs(batch.query, batch.response, batch.mask)  # type: ignore[no-any-return]


CLEAN_PROCESS = """
import json, sys, torch
from pathlib import Path
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

found = {}
for folder in json.loads(sys.argv[1]):
    adapter = Path(folder, "adapter_config.json")
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else folder
    auto = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(base).is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(base)
    model = PeftModel.from_pretrained(model, folder) if adapter.exists() else model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Hello Anna, why?")["input_ids"]])
    more = {"decoder_input_ids": ids} if auto is AutoModelForSeq2SeqLM else {}
    with torch.no_grad():
        found[folder] = model.eval()(input_ids=ids, **more).logits[0]
assert "dialtune" not in sys.modules
save_file(found, sys.argv[2])
"""


def test_saved_folders_open_with_plain_transformers_and_peft_in_a_clean_process(
    saved_model: SaveModel, tmp_path: Path
) -> None:
    expected = {}
    for kind in ("t5", "bart", "llama", "gpt2"):
        base = load_model(str(saved_model(kind)), dtype="float32")
        adapted = attach_lora(base, r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=0)
        with torch.no_grad():
            for name, parameter in adapted.module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.3)
        for model, folder in ((adapted, tmp_path / f"{kind}-lora"), (None, tmp_path / f"{kind}-full")):
            folder.mkdir()
            opened = model or load_model(str(tmp_path / f"{kind}-lora"), dtype="float32")
            save_model(opened, folder)
            ids = torch.tensor([opened.tokenizer("Hello Anna, why?")["input_ids"]])
            more = {"decoder_input_ids": ids} if isinstance(opened, Seq2SeqLM) else {}
            with torch.no_grad():
                expected[str(folder)] = opened.core(input_ids=ids, **more).logits[0]
    script, out = tmp_path / "script.py", tmp_path / "logits.safetensors"
    script.write_text(CLEAN_PROCESS)
    command = [sys.executable, str(script), json.dumps(sorted(expected)), str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(out)
    assert found.keys() == expected.keys()
    for folder, logits in expected.items():
        torch.testing.assert_close(found[folder], logits, atol=1e-5, rtol=0, msg=folder)


def test_notes_are_kept_beside_the_weights(saved_model: SaveModel, tmp_path: Path) -> None:
    model = load_model(str(saved_model("gpt2")))
    folder = tmp_path / "noted"
    folder.mkdir()
    save_model(model, folder)
    assert not (folder / "dialtune.json").exists()
    assert read_notes(str(folder)) == {}
    notes = {"task": "summarize", "template": "plain", "max_prompt_length": 64}
    save_model(model, folder, notes)
    assert read_notes(str(folder)) == notes
    assert read_notes("org/model") == read_notes("smollm2-135m") == {}


def test_notes_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "dialtune.json").write_text('{"task": ')
    with pytest.raises(ModelError, match=r"dialtune\.json: not JSON \(.*\); delete it or restore the checkpoint"):
        read_notes(str(tmp_path))
    (tmp_path / "dialtune.json").write_text("[1]")
    assert read_notes(str(tmp_path)) == {}


def test_an_adapter_of_a_packaged_model_finds_its_base_on_any_machine(
    saved_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved_model("llama")
    monkeypatch.setattr(loading, "packaged_folder", lambda name: base)
    model = load_model("smollm2-135m", dtype="float32")
    adapted = attach_lora(model, r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(adapted, folder, {"task": "summarize"})
    assert read_notes(str(folder)) == {"task": "summarize", "base": "smollm2-135m"}
    elsewhere = base.rename(tmp_path / "another-cache")
    monkeypatch.setattr(loading, "packaged_folder", lambda name: elsewhere)
    assert load_model(str(folder), dtype="float32").info.name == "smollm2-135m"


@pytest.mark.parametrize("result", [1, 2])
def test_a_run_folder_stands_for_the_checkpoint_that_is_its_result(
    result: int, saved_model: SaveModel, tmp_path: Path
) -> None:
    """The newest checkpoint knows which one won; the winner may have been removed since."""
    model, run = load_model(str(saved_model("gpt2")), dtype="float32"), tmp_path / "run"
    run.mkdir()
    for step in (1, 2):
        documents = {"train_state": {"result_step": result}}
        save_checkpoint(run, step, {}, documents, lambda folder: save_model(model, folder, {"step": step}), keep=None)  # noqa: B023
    assert resolve_folder(str(run)) == run / f"checkpoint-{result}"
    assert read_notes(str(run)) == {"step": result}
    shutil.rmtree(run / "checkpoint-1")
    assert resolve_folder(str(run)) == run / "checkpoint-2"


@pytest.mark.parametrize(("kind", "lora"), [("t5", None), ("llama", LoraConfig(r=2))])
def test_what_sft_leaves_opens_by_the_run_folders_name(
    kind: str, lora: LoraConfig | None, saved_model: SaveModel, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "dialogue": f"Anna: Hi {i}.\nBen: Bye.", "summary": f"They greet {i}."} for i in range(4)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base, run = saved_model(kind), tmp_path / "run"
    config = RunConfig(
        model=str(base), data=DataConfig(train=str(source)), output_dir=str(run), max_steps=2, lora=lora,
        per_device_train_batch_size=2, learning_rate=1e-2, bf16=False, template="plain", max_prompt_length=99,
    )  # fmt: skip
    result = run_sft(config)
    assert result == run / "checkpoint-2"
    by_run, by_checkpoint = load_model(str(run), dtype="float32"), load_model(str(result), dtype="float32")
    assert _logprobs(by_run).equal(_logprobs(by_checkpoint))
    assert not torch.allclose(_logprobs(by_run), _logprobs(load_model(str(base), dtype="float32")), atol=1e-3)
    notes = dict(read_notes(str(run)))
    assert [(source["name"], source["rows"]) for source in notes.pop("trained_on")] == [("rows.jsonl", 4)]
    assert notes == {"task": "summarize", "template": "plain", "max_prompt_length": 99}


@pytest.mark.parametrize("base", [None, 7, "itself"])
def test_an_adapter_that_names_no_other_model_as_its_base_is_refused(tmp_path, base):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder) if base == "itself" else base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"base_model_name_or_path: got .*; it must name the model"):
        load_model(str(folder))
