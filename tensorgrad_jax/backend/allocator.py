"""Keeping freed memory in the process: on Linux, large arrays otherwise cost page faults each time.

glibc gives every allocation above 32 MiB back to the kernel when it is freed, and takes trimmed
memory anew; the kernel then clears each page again. The temporaries of a compiled step are one such
allocation, made at every step. A program of its own can decide to keep them; a library must not.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed, for the rest of the process; False where there is no glibc.

    The process then occupies its peak until it ends. Memory of accelerators is not concerned.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(mallopt(option, value) == 1 for option, value in wanted)
