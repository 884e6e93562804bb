"""Keep freed memory in the process: on a CPU, activations are allocated and freed by the gigabyte every update."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large blocks instead of returning each to the kernel; True if it will.

    By default every tensor over 32 MB is mapped afresh, and its pages are zeroed by the kernel on first touch: a tenth
    of a training step on a CPU. Nothing else changes; the peak is what it was.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has neither this name nor this setting
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, _LARGEST))
