"""What a model folder may hold: refuses pickles, configs that name code, paths that leave the folder, odd safetensors.

Everything here reads names, sizes and JSON; nothing is imported, unpickled or fetched. The rules answer CVE-2026-4372
and CVE-2026-5241 (code ran from a config despite trust_remote_code=False), CVE-2025-32434 and CVE-2026-24747 (code ran
from a pickle despite weights_only=True) and CVE-2024-34359 (code ran from a chat template).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from dialtune.errors import ModelNotFoundError, UnsafeModelError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 1_000_000
MAX_CONFIG_BYTES = 16 * 2**20

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".mar", ".nemo")
# What transformers' Trainer leaves beside its weights; no loader opens these, and neither do we.
_TRAINER_STATE = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth")

_CONFIG = re.compile(r".*config[\w.-]*\.json|chat_template\.json")
_CODE_KEYS = {"auto_map", "custom_generate", "custom_pipelines"}  # this run's trust_remote_code may allow them
_FORBIDDEN_KEYS = {
    "_attn_implementation_internal": "it selected remote code in CVE-2026-4372; no library writes it",
    "_experts_implementation_internal": "it selects an implementation behind the loader's back; no library writes it",
    "trust_remote_code": "only this run's own recipe or command line may say so",
    "use_kernels": "kernels are code from a hub",
    "kernel_config": "kernels are code from a hub",
    "allow_all_kernels": "kernels are code from a hub",
    "megatron_config": "peft then imports the module named by megatron_core",
    "cache_file": "peft unpickles it",
    "covariance_file": "peft unpickles it",
}
_PATH_KEY = re.compile(r".*_(file|files|path|dir|folder)")
# Written by other people's machines into many published configs, and read by no loader.
_IDLE_PATH_KEYS = {"special_tokens_map_file", "name_or_path", "_name_or_path", "base_model_name_or_path"}
_DUNDER = re.compile(r"__\w+?__")


def check_model_folder(
    path: Path,
    *,
    allow_pickle: bool = False,
    sha256: str | Collection[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Return if loading the model in `path` runs no code and reads nothing outside the folder.

    Args:
        path: a folder as transformers or peft would open it; hub cache snapshots with their links are fine.
        allow_pickle: accept pickled weights whose sha256 is given; the loader must still use weights_only.
        sha256: hex digests of the pickled files that were looked at and found good.
        trust_remote_code: accept keys that name code (`auto_map`, `custom_generate`); the caller pins the commit.

    Raises:
        ModelNotFoundError: there is no such folder.
        UnsafeModelError: names file and key, in at most three lines.
    """
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such model folder")
    digests = {sha256.lower()} if isinstance(sha256, str) else {digest.lower() for digest in sha256 or ()}
    problems = list(_problems(path, digests if allow_pickle else None, trust_remote_code))
    if sum(1 + problem.count("\n") for problem in problems) > 3:
        problems = [problems[0], f"{path}: {len(problems) - 1} more such files or keys; nothing was loaded"]
    if problems:
        raise UnsafeModelError("\n".join(problems))


def convert_command(pickled: Path) -> str:
    """A shell command that turns pickled weights into safetensors beside them, with torch's restricted unpickler."""
    target = pickled.with_name("adapter_model" if pickled.name.startswith("adapter") else "model")
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{pickled}', weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, '{target}.safetensors', {{'format': 'pt'}})\""
    )


def _problems(folder: Path, digests: set[str] | None, trusted: bool) -> Iterator[str]:
    """One line per problem; files that are links or no files are not opened for a closer look."""
    root = folder.resolve()
    plain = []
    for file in _entries(folder):
        bad_place = _problem_of_place(file, root)
        if bad_place:
            yield f"{file}: {bad_place}"
        elif file.is_file():
            plain.append(file)
    has_safetensors = any(file.suffix == ".safetensors" and file.parent == folder for file in plain)
    for file in plain:
        if file.name.lower().endswith(_PICKLES):
            yield from _problems_of_pickle(file, digests, has_safetensors)
        else:
            yield from _problems_of_content(file, trusted)


def _problems_of_content(file: Path, trusted: bool) -> Iterator[str]:
    name = file.name.lower()
    if name.endswith(_ARCHIVES):
        yield f"{file}: an archive has no place in a model folder; look at what it holds, then unpack or delete it"
    elif name.endswith(".safetensors"):
        yield from _problems_of_safetensors(file)
    elif name.endswith(".index.json"):
        yield from _problems_of_index(file)
    elif _CONFIG.fullmatch(name):
        yield from _problems_of_config(file, trusted)
    elif name.endswith(".jinja"):
        yield from _problems_of_template(file, "its text", file.read_text(encoding="utf-8", errors="replace"))


def _entries(folder: Path) -> list[Path]:
    """Everything below `folder`, sorted, folders included; links to folders are listed and not entered."""
    walk = os.walk(folder, followlinks=False)
    return sorted(Path(top, name) for top, folders, files in walk for name in (*folders, *files))


def _problem_of_place(file: Path, root: Path) -> str | None:
    """Links must end inside the folder, or inside the hub cache's own blobs (models--x/snapshots/REVISION -> blobs)."""
    mode = file.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = Path(os.path.realpath(file))
        is_snapshot = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
        allowed = [root, *([root.parent.parent / "blobs"] if is_snapshot else [])]
        if not any(target.is_relative_to(place) for place in allowed):
            return f"a link that leaves the model folder (to {target}); copy the file into the folder if you trust it"
        return None if target.exists() else "a link to nothing; copy the file it should be into the folder"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "neither a file nor a folder (a pipe, socket or device); delete it"
    return None


def _problems_of_pickle(file: Path, digests: set[str] | None, has_safetensors: bool) -> Iterator[str]:
    if has_safetensors and _TRAINER_STATE.fullmatch(file.name):
        return
    if digests is None:
        advice = (
            "the folder also holds safetensors: delete the pickle"
            if has_safetensors
            else f"convert it where nothing can be harmed:\n  {convert_command(file)}"
        )
        yield f"{file}: a pickle can run code when it is opened; only safetensors are loaded; {advice}"
        return
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found not in digests:
        yield f"{file}: pickles are allowed only with their sha256; this one has {found}, which was not given"


def _problems_of_safetensors(file: Path) -> Iterator[str]:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            yield f"{file}: not safetensors: its header claims {length} bytes; the file has {size}, the limit is 16 MiB"
            return
        raw = opened.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        spans = [_span(entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"{file}: not safetensors: its header is no table of tensors ({type(error).__name__}: {str(error)[:80]})"
        return
    if len(spans) > MAX_TENSORS:
        yield f"{file}: {len(spans)} tensors; the limit is {MAX_TENSORS}"
        return
    end = 0
    for begin, stop in sorted(spans):
        if begin != end or stop < begin:
            yield f"{file}: tensor data at {begin}..{stop} overlaps other data or leaves a gap after byte {end}"
            return
        end = stop
    if end != size - 8 - length:
        yield f"{file}: its tensors need {end} bytes of data and the file has {size - 8 - length}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise TypeError("data_offsets are not whole numbers")
    return begin, end


def _problems_of_index(file: Path) -> Iterator[str]:
    try:
        shards = {str(shard) for shard in _read(file)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"{file}: no index of shards ({type(error).__name__}: {str(error)[:80]})"
        return
    for shard in sorted(shards):
        if _leaves_folder(shard) or not (file.parent / shard).is_file():
            yield f"{file}: key 'weight_map' names {shard!r}, which is no file of this folder"
        elif "safetensors" in file.name and not shard.endswith(".safetensors"):
            yield f"{file}: key 'weight_map' names {shard!r}; only safetensors are loaded"


def _problems_of_config(file: Path, trusted: bool) -> Iterator[str]:
    try:
        config = _read(file)
    except (ValueError, RecursionError) as error:
        yield f"{file}: not readable as JSON ({type(error).__name__}: {str(error)[:80]})"
        return
    for key, place, value in _items(config):
        reason = _problem_of_key(key, place, value, trusted)
        if reason:
            yield f"{file}: key '{place}' {reason}"
        elif key in ("chat_template", "template") and isinstance(value, str):
            yield from _problems_of_template(file, f"key '{place}'", value)


def _read(file: Path) -> Any:
    size = file.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ValueError(f"{size} bytes; the limit is {MAX_CONFIG_BYTES}")
    return json.loads(file.read_bytes())


def _items(config: Any) -> Iterator[tuple[str, str, Any]]:
    """(key, dotted place, value) of every key at any depth; elements of lists carry the key of their list."""
    todo: list[tuple[str, str, Any]] = [("", "", config)]
    while todo:
        key, place, value = todo.pop()
        yield key, place, value
        if isinstance(value, dict):
            todo += [(inner, f"{place}.{inner}".strip("."), item) for inner, item in value.items()]
        elif isinstance(value, list):
            todo += [(key, f"{place}.{index}".strip("."), item) for index, item in enumerate(value)]


def _problem_of_key(key: str, place: str, value: Any, trusted: bool) -> str | None:
    if not value:  # null, false and empty ask for nothing
        return None
    if key in _CODE_KEYS and not trusted:
        return (
            "names code that comes with the model; remove it if transformers knows this architecture, "
            "or read that code and set trust_remote_code with a 40-hex revision"
        )
    if key in _FORBIDDEN_KEYS:
        return f"is not accepted from a model's files: {_FORBIDDEN_KEYS[key]}; remove it"
    if isinstance(value, str) and "/" in value and ("_implementation" in place or "kernel" in place):
        return f"asks for code from a hub ({value!r}); remove it"
    return _problem_of_text(key, value) if isinstance(value, str) else None


def _problem_of_text(key: str, value: str) -> str | None:
    if key == "parent_library" and value.split(".")[0] not in ("transformers", "peft"):
        return f"makes peft import {value!r}; only transformers and peft are imported; remove it"
    if key == "megatron_core" and value != "megatron.core":
        return f"makes peft import {value!r}; remove it"
    if key == "base_model_name_or_path" and "://" in value:
        return f"is an address ({value!r}); a base model is a folder or a hub name"
    if _PATH_KEY.fullmatch(key) and key not in _IDLE_PATH_KEYS and _leaves_folder(value):
        return f"names a path outside the model folder ({value!r}); remove it"
    return None


def _leaves_folder(value: str) -> bool:
    parts = value.replace("\\", "/").split("/")
    windows = PureWindowsPath(value)
    return bool(windows.anchor or windows.drive or "://" in value or parts[0].startswith("~") or ".." in parts)


def _problems_of_template(file: Path, place: str, text: str) -> Iterator[str]:
    found = _DUNDER.search(text)
    if found:
        yield f"{file}: {place} reaches for python internals ({found[0]!r}); a chat template has no use for them"
    if len(text) > MAX_CONFIG_BYTES // 16:
        yield f"{file}: {place} is a chat template of {len(text)} characters; the limit is {MAX_CONFIG_BYTES // 16}"
