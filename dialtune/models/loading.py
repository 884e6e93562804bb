"""A name, a folder or a packaged name → a LanguageModel: the one place that opens weights.

safetensors only, no remote code unless this run asks for it with a commit hash, no network when HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dialtune.cards import CARD, Making, base_of, write_card
from dialtune.checkpoints import newest_checkpoint
from dialtune.data.seen import Seen, read_seen
from dialtune.errors import ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models.base import LanguageModel
from dialtune.models.causal import CausalLM
from dialtune.models.lora import settle_adapter_config
from dialtune.models.packaged import PACKAGED, packaged_folder, quiet_transformers, sha256_of
from dialtune.models.safety import check_model_folder
from dialtune.models.seq2seq import Seq2SeqLM
from dialtune.results import ModelInfo
from dialtune.runs import TRAINED_ON, RunFolder, write_text_atomic

DType = Literal["auto", "float32", "bfloat16", "float16"]
OpenModel = CausalLM | Seq2SeqLM  # what `load_model` gives: a LanguageModel with its tokenizer and transformers core
NOTES = "dialtune.json"  # beside saved weights: packaged name of the base, task, template, prompt budget
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_model(
    name: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = True,
) -> OpenModel:
    """Open a model for generation or training.

    Args:
        name: a packaged name (`smollm2-135m`), a local folder (full weights or a LoRA adapter), or a hub name.
        dtype: `auto` is bfloat16 where the machine multiplies it faster than float32, else float32. T5 refuses float16.
        device: `auto` is the first GPU, else the CPU.
        revision: commit, tag or branch of a hub model.
        trust_remote_code: run code from the model's repository; needs a 40-hex `revision`.
        merge_adapter: fold a LoRA adapter into its base, in fp32 (faster generation); False keeps it trainable.
    Raises:
        ModelNotFoundError: no such name.
        UnsafeModelError: pickled weights, remote code, or files that leave the folder.
        ModelError: found, but not a text-to-text or causal language model, or a dtype it cannot use.
    """
    if trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise UnsafeModelError(
            f"trust_remote_code needs the exact commit you have read: revision is {revision!r}, expected 40 hex digits"
        )
    folder = resolve_folder(name, revision)
    check_model_folder(folder, trust_remote_code=trust_remote_code)
    with quiet_transformers():
        if (folder / "adapter_config.json").is_file():
            return _load_adapter(name, folder, dtype=dtype, device=device, merge=merge_adapter)
        config = _config_of(name, folder, trust_remote_code)
        chosen = choose_dtype(dtype, config.model_type, choose_device(device))
        return _open(name, folder, config, chosen, choose_device(device), revision, trust_remote_code)


def resolve_folder(name: str, revision: str | None = None) -> Path:
    """The local folder behind a name.

    A run folder stands for the checkpoint that is its result; a hub name is downloaded (safetensors, JSON and
    tokenizer files only).
    """
    if name in PACKAGED:
        return packaged_folder(name)
    path = Path(name)
    if path.is_dir():
        path = _result_of_run(path)
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(
                f"{name}: the folder holds no config.json and no adapter_config.json; it is not a saved model"
            )
        return path
    if path.is_file():
        raise ModelError(f"{name}: a model is a folder (config.json, model.safetensors, tokenizer), got a file")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", name) or name.startswith((".", "/")):
        raise ModelNotFoundError(_not_found(name, "no such folder"))
    return _download(name, revision)


def choose_device(device: str) -> torch.device:
    """`auto` → the first GPU, else the CPU.

    Raises:
        ModelError: the device asked for is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device: got {device!r}, but torch {torch.__version__} sees no GPU; use device: cpu or auto")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or none that this torch was built for
        raise ModelError(f"device: got {device!r}; allowed: auto, cpu, cuda, cuda:0") from error


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: any recent GPU, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_dtype(dtype: DType, model_type: str, device: torch.device) -> torch.dtype:
    """The torch dtype for weights.

    T5 overflows in float16 (huggingface/transformers#4586), so that is refused rather than left to produce NaN.
    """
    if dtype == "float16" and "t5" in model_type:
        raise ModelError(f"dtype float16 overflows in {model_type} (infinite activations); use bfloat16 or float32")
    if dtype == "auto":
        return torch.bfloat16 if bf16_is_faster(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def save_model(model: LanguageModel, folder: Path, notes: Mapping[str, Any] | None = None) -> None:
    """`model.save`, and beside it what other programs have no field for, dialtune.json, and a card.

    peft's own card names a folder of this machine; a README.md that was there before stays.

    Args:
        model: any family.
        folder: exists.
        notes: how the model was trained to be asked (task, template, max_prompt_length), read back by `read_notes`.
    """
    card = folder / CARD
    own = card.read_bytes() if card.is_file() else None
    with quiet_transformers():
        model.save(folder)
    known = dict(notes or {})
    base = model.info.name
    has_adapter = (folder / "adapter_config.json").is_file()
    if has_adapter:
        settle_adapter_config(folder)
    if has_adapter and base in PACKAGED:
        known["base"] = base  # adapter_config.json names a folder of this machine
    if known:
        write_text_atomic(folder / NOTES, json.dumps(known, indent=2, sort_keys=True) + "\n")
    if own is not None:
        card.write_bytes(own)
        return
    origin = base_of(known.get("base", base))
    family = model.info.family == "encoder-decoder"
    start = origin or "a model of its own"
    write_card(folder, Making(origin, start, known.get("task"), known.get("template"), has_adapter, family))


def read_notes(name: str) -> dict[str, Any]:
    """What dialtune.json says beside a local model; empty for every other model."""
    folder = Path(name)
    if not folder.is_dir():
        return {}
    path = _result_of_run(folder) / NOTES
    if not path.is_file():
        return {}
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); delete it or restore the checkpoint") from error
    return notes if isinstance(notes, dict) else {}


def find_trained_on(name: str) -> Seen | None:
    """What a local model that dialtune saved was trained on, from beside its weights or its run folder.

    None for every other model, and for one whose folder was moved away from that file.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    weights = _result_of_run(folder).resolve()
    paths = (weights / TRAINED_ON, weights.parent / TRAINED_ON)
    return next((read_seen(path) for path in paths if path.is_file()), None)


def _result_of_run(folder: Path) -> Path:
    """The checkpoint that a run folder's newest checkpoint names as the result, or a grid's best run's; any other
    folder as it is.
    """
    run = RunFolder(folder)
    if run.grid.is_file() and run.best.is_dir():
        folder = run.best
    checkpoints = RunFolder(folder).checkpoints()
    if not checkpoints or (folder / "config.json").is_file():
        return folder
    newest = newest_checkpoint(folder)
    assert newest is not None
    chosen = RunFolder(folder).checkpoint(newest.document("train_state")["result_step"])
    return chosen if chosen.is_dir() else newest.path


def _open(  # noqa: PLR0913  internal, one caller
    name: str, folder: Path, config: Any, dtype: torch.dtype, device: torch.device, revision: str | None, remote: bool
) -> OpenModel:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    is_seq2seq = bool(config.is_encoder_decoder)
    auto, wrapper = (AutoModelForSeq2SeqLM, Seq2SeqLM) if is_seq2seq else (AutoModelForCausalLM, CausalLM)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
        opened: Any = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: {type(config).__name__} cannot be opened as a language model: {reason}") from error
    module, loaded = opened
    _check_complete(name, tokenizer, loaded)
    module = module.to(device).eval()
    info = ModelInfo(
        name=name,
        revision=revision,
        family="encoder-decoder" if is_seq2seq else "decoder-only",
        weights_sha256=weights_sha256(folder),
        dtype=str(dtype).removeprefix("torch."),
    )
    model = wrapper(module, tokenizer, info)
    _check_head(model)
    return model


def _load_adapter(name: str, folder: Path, *, dtype: DType, device: str, merge: bool) -> OpenModel:
    from peft import PeftModel

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base_name = read_notes(str(folder)).get("base") or settings.get("base_model_name_or_path")
    if not isinstance(base_name, str) or Path(base_name).resolve() == folder.resolve():
        raise ModelError(
            f"{name}: adapter_config.json: base_model_name_or_path: got {base_name!r}; "
            "it must name the model that the adapter was trained on, another folder or a hub name"
        )
    base = load_model(base_name, dtype="float32" if merge else dtype, device=device, merge_adapter=True)
    target = choose_dtype(dtype, base.core.config.model_type, choose_device(device))
    adapted: Any = PeftModel.from_pretrained(base.core, folder, is_trainable=not merge)
    module = adapted.merge_and_unload().to(target) if merge else adapted
    digest = hashlib.sha256(f"{base.info.weights_sha256} {weights_sha256(folder)}".encode()).hexdigest()
    info = base.info.model_copy(
        update={"adapter": name, "weights_sha256": digest, "dtype": str(target).removeprefix("torch.")}
    )
    return type(base)(module, base.tokenizer, info)


def weights_sha256(folder: Path) -> str:
    """One digest over the folder's weight files, by name; a checkpoint's optimizer and random states do not count."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")]):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _config_of(name: str, folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"{name}: config.json names no model that transformers knows: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_complete(name: str, tokenizer: Any, loaded: Mapping[str, Any]) -> None:
    """transformers fills what a folder lacks with random weights or an empty vocabulary, and only warns."""
    wrong = sorted(loaded["missing_keys"])
    wrong += [f"{key} (got {tuple(got)}, expected {tuple(want)})" for key, got, want in loaded["mismatched_keys"]]
    if wrong:
        raise ModelError(
            f"{name}: the weights do not fill the model that config.json describes; {len(wrong)} tensors are missing "
            f"or have another shape: {', '.join(wrong[:3])}; restore model.safetensors or config.json"
        )
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(f"{name}: the folder holds no tokenizer (tokenizer.json); save it beside the weights")


def _check_head(model: OpenModel) -> None:
    """The states-then-head path must give the whole model's logits; some architectures post-process them."""
    whole, ours = model.probe_logits()
    if not torch.allclose(whole, ours, atol=1e-3 if whole.dtype == torch.float32 else 0.25, rtol=0.02):
        raise ModelError(
            f"{model.name}: this architecture changes its logits after the head "
            f"(largest gap {(whole - ours).abs().max():.3g}); "
            "dialtune would score other probabilities than it samples, so it refuses it"
        )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")
        looked = "the hub cache (HF_HUB_OFFLINE is set)" if offline else f"the hub ({type(error).__name__})"
        raise ModelNotFoundError(_not_found(name, f"not in {looked}")) from error


def _not_found(name: str, where: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, PACKAGED, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; packaged: {', '.join(PACKAGED)}"
    return (
        f"{name}: no such model: {where}{hint}\n"
        "  Give a packaged name, a folder with config.json and model.safetensors, or a hub name (google/flan-t5-base)."
    )
