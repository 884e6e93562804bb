"""checkpoint-N: written to a temporary sibling, manifest last, then renamed; read only after every byte is verified.

A checkpoint holds the model's own files under their Hugging Face names, so plain transformers or peft opens the folder,
and beside them named tensors (`optimizer.safetensors`), named documents (`state.json`) and MANIFEST.json. There is no
pickle, so reading one runs no code. The order of writes is that of docs/run-folder: a kill at any moment leaves the
earlier checkpoints as they were and never shows a part of the new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dialtune.errors import CheckpointError
from dialtune.runs import RunFolder, fsync_folder, remove, require_free_space, step_of

CHECKPOINT_FORMAT = "dialtune.checkpoint/1"
MANIFEST = "MANIFEST.json"
_FOR_PEOPLE = "README.md"  # the card: people may change it, no code reads it, so no manifest holds it
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every file had the size and hash of its manifest when it was opened."""

    path: Path
    step: int
    fingerprint: str  # what the writer gave: resolved config and data; a resume compares it

    def tensors(self, name: str, device: str = "cpu") -> dict[str, Tensor]:
        """The tensors saved under `name`, bit for bit, on `device`."""
        return load_file(self._part(f"{name}.safetensors"), device=device)

    def document(self, name: str) -> Any:
        """The JSON value saved under `name`."""
        return json.loads(self._part(f"{name}.json").read_bytes())

    def _part(self, file: str) -> Path:
        path = self.path / file
        if not path.is_file():
            raise CheckpointError(
                f"{self.path}: holds no {file}; there are: {', '.join(sorted(p.name for p in self.path.iterdir()))}"
            )
        return path


def save_checkpoint(  # noqa: PLR0913  what a checkpoint consists of, and nothing else
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    model_writer: Callable[[Path], None],
    *,
    keep: int | None,
    protect: Collection[int] = (),
    fingerprint: str = "",
    model_bytes: int = 0,
) -> Path:
    """Commit checkpoint-`step` and return its folder; from then on it survives a kill and a power cut.

    The caller holds the run lock. Saving a step again is harmless: equal content changes nothing, other content takes
    the old one's place, and the old one stays valid until then.

    Args:
        run_dir: the run folder, which exists.
        step: optimizer updates done, >= 0.
        tensors: name -> tensors, each name one safetensors file; names are lower-case identifiers.
        documents: name -> JSON value without NaN or infinity, each name one JSON file.
        model_writer: writes the model's files (safetensors, config, tokenizer) into the empty folder it is given.
        keep: how many of the newest checkpoints stay, >= 1, the one just written among them; None keeps all.
        protect: steps that stay whatever `keep` says, e.g. the best one.
        fingerprint: of the resolved config and the data; kept in the manifest.
        model_bytes: size of what `model_writer` writes; used for the first check of free space, when no earlier
            checkpoint shows it.

    Raises:
        CheckpointError: no room, or the disk failed; earlier checkpoints are intact and no part of this one is left.
    """
    assert step >= 0
    assert keep is None or keep >= 1
    run = RunFolder(run_dir)
    target = run.checkpoint(step)
    needed = _bytes_needed(run, tensors, model_bytes)
    require_free_space(run_dir, needed, f"checkpoint-{step}")
    temporary = run_dir / f".tmp-{target.name}-{os.getpid()}"
    if temporary.exists():
        remove(temporary)
    try:
        temporary.mkdir()
        model_writer(temporary)
        _write_parts(temporary, tensors, documents)
        _write_manifest(temporary, step, fingerprint)
        _commit(temporary, target)
    except (OSError, SafetensorError) as error:
        raise _failure(run_dir, target, needed, error) from error
    finally:  # a Ctrl-C as well; after the rename there is nothing of this name
        shutil.rmtree(temporary, ignore_errors=True)
    _rotate(run, step, keep, protect)
    return target


def newest_checkpoint(run_dir: Path, on_broken: Callable[[str], None] = _logger.warning) -> Checkpoint | None:
    """The newest checkpoint that verifies; None if the run has none at all.

    Args:
        run_dir: the run folder.
        on_broken: told in one line about each newer checkpoint that does not verify; those are skipped, not deleted.

    Raises:
        CheckpointError: there are checkpoints and none verifies; starting again from nothing must be asked for.
    """
    found = RunFolder(run_dir).checkpoints()
    for step in sorted(found, reverse=True):
        try:
            return open_checkpoint(found[step])
        except CheckpointError as error:
            on_broken(str(error))
    if found:
        raise CheckpointError(
            f"{run_dir}: {len(found)} checkpoints (newest {max(found)}), none of them intact, so nothing can be "
            "resumed. Restore one from a backup, or start again in another output_dir"
        )
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, after the size and hash of every file were compared with its manifest.

    Raises:
        CheckpointError: the manifest or a file is missing, altered, cut or added; the message names the first one.
    """
    try:
        return _verified(path)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not usable: {MANIFEST} cannot be read ({type(error).__name__})") from error


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts, lists, tuples, scalars and tensors as (tensors by path, JSON value); see unflatten_state.

    Made for `state_dict()` of optimizers and schedulers: keys and numbers keep their types, floats their bits.

    Raises:
        TypeError: a value is neither; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, "", tensors)


def unflatten_state(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """What `flatten_state` was given.

    >>> unflatten_state(*flatten_state({0: {"betas": (0.9, 0.999), "lr": [1e-3, float("inf")]}}))
    {0: {'betas': (0.9, 0.999), 'lr': [0.001, inf]}}
    """
    if isinstance(document, list):
        return [unflatten_state(tensors, value) for value in document]
    if not isinstance(document, dict):
        return document
    ((kind, value),) = document.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(unflatten_state(tensors, item) for item in value)
    assert kind == "dict", kind
    return {key: unflatten_state(tensors, item) for key, item in value}


def capture_rng() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators of python, numpy, torch and CUDA (if in use), as uint8 tensors and a JSON object."""
    _, internal, python_gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    tensors = {
        "python": _to_bytes(np.array(internal, dtype="<u4")),
        "numpy": _to_bytes(legacy["state"]["key"].astype("<u4")),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    document = {
        "python_gauss": python_gauss,
        "numpy": {"pos": legacy["state"]["pos"], "has_gauss": legacy["has_gauss"], "gauss": legacy["gauss"]},
    }
    return tensors, document


def restore_rng(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Set the global generators to what `capture_rng` returned; CUDA devices that this machine lacks are left out."""
    random.setstate((3, tuple(_from_bytes(tensors["python"]).tolist()), document["python_gauss"]))
    saved = document["numpy"]
    state = ("MT19937", _from_bytes(tensors["numpy"]), saved["pos"], saved["has_gauss"], saved["gauss"])
    np.random.set_state(state)
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)


def _bytes_needed(run: RunFolder, tensors: Mapping[str, Mapping[str, Tensor]], model_bytes: int) -> int:
    given = model_bytes + sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    earlier = run.checkpoints()
    last = sum(file.stat().st_size for file in _files(earlier[max(earlier)])) if earlier else 0
    return max(given, last * 11 // 10)


def _files(folder: Path) -> list[Path]:
    """Every file of a checkpoint, sorted; hidden ones (a file manager's) and its card do not count."""
    card = folder / _FOR_PEOPLE
    files = (path for path in folder.rglob("*") if path != card and (path.is_symlink() or not path.is_dir()))
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _write_parts(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
    for name, part in tensors.items():
        save_file(dict(_separate(part)), _new_file(folder, f"{name}.safetensors"))
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        _new_file(folder, f"{name}.json").write_text(text, encoding="utf-8")


def _new_file(folder: Path, file: str) -> Path:
    assert _NAME.fullmatch(Path(file).stem), f"{file!r} is not a lower-case identifier"
    assert not (folder / file).exists(), f"{file} is a file of the model; give the part another name"
    return folder / file


def _separate(part: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with memory of its own, which safetensors insists on; copies only those that share or are views."""
    seen: set[int] = set()
    for key, tensor in part.items():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        shared = tensor.nbytes > 0 and tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        yield key, tensor.detach() if whole and not shared else tensor.detach().clone().contiguous()


def _write_manifest(folder: Path, step: int, fingerprint: str) -> None:
    """Make every file durable, then write down its size and hash."""
    files = {}
    for path in _files(folder):
        if path.is_symlink():
            raise OSError(f"{path.name} is a link; a checkpoint must hold its own files")
        with open(path, "r+b") as file:  # writable, since some systems only sync what they could write
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    body = {
        "format": CHECKPOINT_FORMAT,
        "step": step,
        "fingerprint": fingerprint,
        "code": _code_version(),
        "world_size": 1,
        "files": files,
    }
    with open(folder / MANIFEST, "wb") as file:
        file.write(_manifest_bytes(body))
        file.flush()
        os.fsync(file.fileno())
    for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        fsync_folder(inner)


def _manifest_bytes(body: Mapping[str, Any]) -> bytes:
    """The file's text, which ends with a digest of everything before it; one body has one text."""
    text = json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-2]},\n "digest": "{digest}"\n}}\n'.encode()


def _code_version() -> str:
    try:
        return version("dialtune")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def _commit(temporary: Path, target: Path) -> None:
    aside = target.with_name(f".old-{target.name}")  # runs.remove_leftovers puts it back if we die in between
    if target.exists():
        if _same(temporary, target):
            return
        if aside.exists():
            remove(aside)
        os.rename(target, aside)
    os.rename(temporary, target)
    fsync_folder(target.parent)
    if aside.exists():
        remove(aside)


def _same(temporary: Path, target: Path) -> bool:
    try:
        open_checkpoint(target)
    except CheckpointError:
        return False
    return (temporary / MANIFEST).read_bytes() == (target / MANIFEST).read_bytes()


def _rotate(run: RunFolder, step: int, keep: int | None, protect: Collection[int]) -> None:
    """Delete all but the newest `keep`; `step`, just written, is the newest that is known to verify."""
    found = run.checkpoints()
    stay = {step, *protect, *(sorted(found)[-keep:] if keep else found)}
    for old in sorted(found.keys() - stay):
        doomed = run.path / f".del-{old}"
        try:
            if doomed.exists():
                remove(doomed)
            os.rename(found[old], doomed)
            remove(doomed)
        except OSError as error:  # the new checkpoint is safe, so this is no reason to stop a run
            _logger.warning("%s: cannot delete this old checkpoint: %s", found[old], error.strerror)


def _failure(run_dir: Path, target: Path, needed: int, error: Exception) -> CheckpointError:
    free = shutil.disk_usage(run_dir).free
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return CheckpointError(
        f"{target}: not saved: {reason}; {needed} bytes needed, {free} free; earlier checkpoints are as they were"
    )


def _verified(path: Path) -> Checkpoint:
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: not usable: it has no {MANIFEST}, so it is torn or another program wrote it")
    raw = (path / MANIFEST).read_bytes()
    body = json.loads(raw)
    body.pop("digest")
    if _manifest_bytes(body) != raw:
        raise CheckpointError(f"{path}: not usable: {MANIFEST} was altered")
    if body["format"] != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: not usable: its format is {body['format']!r}, this version reads {CHECKPOINT_FORMAT!r}"
        )
    present = {file.relative_to(path).as_posix() for file in _files(path)} - {MANIFEST}
    body["files"].pop(_FOR_PEOPLE, None)  # manifests of earlier versions list it
    for name in sorted(present ^ body["files"].keys()):
        raise CheckpointError(f"{path}: not usable: {name} {'was added' if name in present else 'is missing'}")
    for name, expected in body["files"].items():
        _verify_file(path, name, expected)
    if step_of(path.name) not in (body["step"], None):
        raise CheckpointError(f"{path}: not usable: it holds step {body['step']}; give it back its own name")
    return Checkpoint(path=path, step=body["step"], fingerprint=body["fingerprint"])


def _verify_file(path: Path, name: str, expected: Mapping[str, Any]) -> None:
    size = (path / name).stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{path}: not usable: {name} has {size} bytes, its manifest says {expected['bytes']}")
    with open(path / name, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: not usable: {name} was altered (sha256 differs from its manifest)")


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = path if path not in tensors else f"{path}#{len(tensors)}"  # {"a.b": .., "a": {"b": ..}} share a path
        tensors[key] = value.detach()
        return {"tensor": key}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}.{index}".strip("."), tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        return {"dict": [[key, _encode(item, f"{path}.{key}".strip("."), tensors)] for key, item in value.items()]}
    raise TypeError(f"{path or 'the state'}: cannot store {type(value).__name__} without a pickle")


def _to_bytes(words: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(words.view(np.uint8).copy())


def _from_bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.numpy().copy().view("<u4")
