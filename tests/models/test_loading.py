"""Names and folders to models: what opens, what is refused and in which words, dtype and device."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dialtune.errors import ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models import loading
from dialtune.models.causal import CausalLM
from dialtune.models.loading import (
    bf16_is_faster,
    choose_device,
    choose_dtype,
    load_model,
    save_model,
)
from dialtune.models.lora import attach_lora
from dialtune.models.seq2seq import Seq2SeqLM
from dialtune.types import Message, Prompt

KINDS = ("t5", "bart", "llama", "gpt2")
SaveModel = Callable[[str], Path]
CPU = torch.device("cpu")
PROMPTS = [Prompt("0", (Message("user", "Hello Anna, why?"),), "plain"), Prompt("1", (Message("user", "No"),), "plain")]
NEXT_STEP = (
    "  Give a packaged name, a folder with config.json and model.safetensors, or a hub name (google/flan-t5-base)."
)


def _logprobs(model: Any) -> Tensor:
    batch = model.training_batch(PROMPTS, ("They meet at the station.", "Yes."))
    with torch.no_grad():
        return model.logprobs(batch.query, batch.response, batch.mask)  # type: ignore[no-any-return]


def _refusal(name: str | Path, kind: type[Exception] = ModelError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        load_model(str(name), **settings)
    assert type(caught.value) is kind
    assert str(caught.value).count("\n") <= 2
    return str(caught.value)


# What opens


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_opens_as_it_was(kind: str, saved_model: SaveModel, tmp_path: Path) -> None:
    first = load_model(str(saved_model(kind)), dtype="float32")
    folder = tmp_path / "again"
    folder.mkdir()
    save_model(first, folder)
    again = load_model(str(folder), dtype="float32", device="cpu")
    seq2seq = kind in ("t5", "bart")
    assert type(again) is (Seq2SeqLM if seq2seq else CausalLM)
    assert again.info.family == ("encoder-decoder" if seq2seq else "decoder-only")
    assert (again.info.name, again.info.dtype, again.info.adapter) == (str(folder), "float32", None)
    assert again.info.weights_sha256 == first.info.weights_sha256
    assert (again.pad_id, again.stop_ids) == (first.pad_id, first.stop_ids)
    assert not again.module.training
    assert _logprobs(again).equal(_logprobs(first))


def test_the_digest_is_of_the_weights(saved_model: SaveModel) -> None:
    folder = saved_model("gpt2")
    before = load_model(str(folder)).info.weights_sha256
    (folder / "README.md").write_text("a card")
    assert load_model(str(folder)).info.weights_sha256 == before
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load_model(str(folder)).info.weights_sha256 != before


# Hub names


def test_a_hub_name_downloads_weights_and_json_only_and_keeps_its_revision(
    saved_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = saved_model("gpt2"), {}

    def snapshot(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = load_model("org/tiny-gpt2", revision="v1")
    assert (asked["name"], asked["revision"]) == ("org/tiny-gpt2", "v1")
    endings = {pattern.rpartition(".")[2] for pattern in asked["allow_patterns"]}
    assert {"safetensors", "json"} <= endings
    assert not endings & {"bin", "pt", "pth", "pkl", "py", "ckpt", "*"}
    assert (model.info.name, model.info.revision) == ("org/tiny-gpt2", "v1")


def test_an_unknown_name_says_where_it_looked_and_what_to_give() -> None:
    assert _refusal("org/no-such-model", ModelNotFoundError) == (
        "org/no-such-model: no such model: not in the hub cache (HF_HUB_OFFLINE is set); packaged: smollm2-135m\n"
        + NEXT_STEP
    )
    assert _refusal("smollm2-135", ModelNotFoundError) == (
        "smollm2-135: no such model: not in the hub cache (HF_HUB_OFFLINE is set); did you mean 'smollm2-135m'?\n"
        + NEXT_STEP
    )


@pytest.mark.parametrize("name", ["./runs/gone", "/no/such/folder", "runs/gone/checkpoint-3", "../model", "two words"])
def test_a_path_that_is_not_there_is_never_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("looked it up"))
    assert _refusal(name, ModelNotFoundError) == (
        f"{name}: no such model: no such folder; packaged: smollm2-135m\n" + NEXT_STEP
    )


def test_with_the_network_on_the_message_names_the_hubs_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **settings: Any) -> str:
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "not in the hub (LocalEntryNotFoundError)" in _refusal("org/model", ModelNotFoundError)


# What is refused


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert _refusal(file) == (f"{file}: a model is a folder (config.json, model.safetensors, tokenizer), got a file")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert _refusal(tmp_path) == (
        f"{tmp_path}: the folder holds no config.json and no adapter_config.json; it is not a saved model"
    )


def test_pickled_weights_are_refused_before_anything_is_opened(saved_model: SaveModel) -> None:
    folder = saved_model("gpt2")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))
    assert "pytorch_model.bin" in _refusal(folder, UnsafeModelError)


@pytest.mark.parametrize("revision", [None, "main", "abc123", "g" * 40, "A" * 40, "a" * 41])
def test_remote_code_needs_the_commit_that_was_read(saved_model: SaveModel, revision: str | None) -> None:
    message = _refusal(saved_model("gpt2"), UnsafeModelError, trust_remote_code=True, revision=revision)
    assert message == (
        f"trust_remote_code needs the exact commit you have read: revision is {revision!r}, expected 40 hex digits"
    )


def test_remote_code_of_a_pinned_commit_gets_past_the_door(saved_model: SaveModel) -> None:
    folder = saved_model("gpt2")
    assert load_model(str(folder), trust_remote_code=True, revision="a" * 40).info.revision == "a" * 40
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": {"AutoConfig": "x.Y"}}))
    assert "auto_map" in _refusal(folder, UnsafeModelError)


def test_a_config_that_names_no_known_model_is_refused(saved_model: SaveModel) -> None:
    folder = saved_model("gpt2")
    (folder / "config.json").write_text('{"model_type": "nonsense"}')
    assert _refusal(folder).startswith(f"{folder}: config.json names no model that transformers knows: ")


def test_a_model_that_writes_no_text_is_refused(saved_model: SaveModel) -> None:
    from transformers import ViTConfig, ViTModel

    folder = saved_model("gpt2")
    (folder / "model.safetensors").unlink()
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**tiny, image_size=32)).save_pretrained(folder)
    assert _refusal(folder).startswith(f"{folder}: ViTConfig cannot be opened as a language model: ")


def test_logits_that_are_changed_after_the_head_are_refused(saved_model: SaveModel) -> None:
    """Gemma 2 squeezes its logits with a tanh; scoring states through the head alone would miss it."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    folder = saved_model("llama")
    (folder / "model.safetensors").unlink()
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Gemma2Config(**tiny, num_key_value_heads=1, head_dim=8, vocab_size=400, final_logit_softcapping=0.05)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    message = _refusal(folder, dtype="float32")
    assert message.startswith(f"{folder}: this architecture changes its logits after the head (largest gap ")
    assert message.endswith("dialtune would score other probabilities than it samples, so it refuses it")


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
def test_weights_that_are_missing_are_not_made_up(kind: str, saved_model: SaveModel) -> None:
    folder = saved_model(kind)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(tensors) if "norm" in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    assert _refusal(folder) == (
        f"{folder}: the weights do not fill the model that config.json describes; 1 tensors are missing "
        f"or have another shape: {gone}; restore model.safetensors or config.json"
    )


def test_weights_of_another_shape_are_named_with_both_shapes(saved_model: SaveModel) -> None:
    folder = saved_model("llama")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": 416}))
    assert "model.embed_tokens.weight (got (400, 16), expected (416, 16))" in _refusal(folder)


def test_a_bias_that_published_bart_folders_leave_out_is_no_missing_weight(saved_model: SaveModel) -> None:
    folder = saved_model("bart")
    tensors = load_file(folder / "model.safetensors")
    assert not tensors.pop("final_logits_bias").any()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert isinstance(load_model(str(folder)), Seq2SeqLM)


@pytest.mark.parametrize("kind", ["bart", "llama"])
def test_a_folder_without_tokenizer_or_weights_is_refused(kind: str, saved_model: SaveModel) -> None:
    folder = saved_model(kind)
    for path in folder.glob("*token*"):
        path.unlink()
    assert "tokenizer" in _refusal(folder)  # transformers gives BART an empty vocabulary instead
    (folder / "model.safetensors").unlink()
    assert _refusal(folder, ModelError)


def test_an_encoder_decoder_without_a_start_token_is_refused(saved_model: SaveModel) -> None:
    folder = saved_model("t5")
    settings = json.loads((folder / "config.json").read_text()) | {"decoder_start_token_id": None}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert "config.json names no decoder_start_token_id; the first token has no input" in _refusal(folder)


def test_an_adapter_whose_base_is_gone_names_it(saved_model: SaveModel, tmp_path: Path) -> None:
    base = saved_model("gpt2")
    model = attach_lora(load_model(str(base)), r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(model, folder)
    shutil.rmtree(base)
    assert _refusal(folder, ModelNotFoundError).startswith(f"{base}: no such model: no such folder")


# dtype and device


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5", "longt5"])
def test_t5_never_runs_in_float16(model_type: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_dtype("float16", model_type, CPU)
    assert str(caught.value) == (
        f"dtype float16 overflows in {model_type} (infinite activations); use bfloat16 or float32"
    )
    assert choose_dtype("bfloat16", model_type, CPU) == torch.bfloat16


def test_a_t5_folder_is_refused_in_float16_and_another_opens(saved_model: SaveModel) -> None:
    assert _refusal(saved_model("t5"), dtype="float16").startswith("dtype float16 overflows in t5")
    assert load_model(str(saved_model("gpt2")), dtype="float16").module.dtype == torch.float16


@pytest.mark.parametrize("faster", [True, False])
def test_auto_is_bfloat16_where_it_is_faster(
    faster: bool, saved_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "bf16_is_faster", lambda device: faster)
    model = load_model(str(saved_model("t5")))
    assert model.module.dtype == (torch.bfloat16 if faster else torch.float32)
    assert model.info.dtype == ("bfloat16" if faster else "float32")


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True)])
def test_a_cpu_multiplies_bf16_faster_with_avx512_bf16_or_amx(
    avx: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_is_faster(CPU) == (avx or amx)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ModelError) as caught:
            choose_device(device)
        assert str(caught.value) == (
            f"device: got {device!r}, but torch {torch.__version__} sees no GPU; use device: cpu or auto"
        )


@pytest.mark.parametrize("device", ["gpu", "", "xpu", "cpu:x"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_device(device)
    assert str(caught.value) == f"device: got {device!r}; allowed: auto, cpu, cuda, cuda:0"


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
