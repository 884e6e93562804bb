"""Keep freed memory in the process: on a CPU, activations are allocated and freed by the gigabyte every update."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

GROWTH = 1.2  # of resident memory, beyond which freed pieces that nothing fits into go back to the kernel

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large blocks instead of returning each to the kernel; True if it will.

    By default every tensor over 32 MB is mapped afresh, and its pages are zeroed by the kernel on first touch: a tenth
    of a training step on a CPU. Batches of many sizes leave gaps, though, so call `settle` after each update.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has neither this name nor this setting
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, _LARGEST))


def settle(resident: int) -> int:
    """The resident bytes to compare with after each later update; trims the heap if it has grown by a fifth.

    The first update sets the measure for all. One that followed the largest batch so far let a run of 84 updates grow
    from 5 to 12 GB.

    Args:
        resident: what the first call returned, 0 at first.
    """
    now = _resident_bytes()
    if resident and now > resident * GROWTH:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident or now


def _resident_bytes() -> int:
    """What the process holds in memory, in bytes; 0 where the kernel does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
