"""The machine a run stands on: versions, devices, threads, memory; what run.json stores."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dialtune", "torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "numpy", "pydantic",
    "rouge-score", "sacrebleu", "scipy", "scikit-learn", "matplotlib",
)  # fmt: skip


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


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
