"""How this process's C library treats freed memory: an explicit choice, never made by itself.

By default glibc takes every large block (from 128 KiB; the limit adapts, up to 32 MiB) from the
system by itself and gives it back when it is freed, so a tensor of tens of MiB costs page faults
each time it is made, and on a CPU they take longer than many operations on it.
"""

import ctypes
import os
import sys
from collections.abc import Callable

from robustssm.core.errors import violation

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1  # bytes free at the heap's end from which it is cut; an int in mallopt


def keep_freed_memory() -> None:
    """Makes this process, and those that it starts from now on, keep what they free for reuse.

    Large tensors then cost no page faults after the first of their size. What it costs is memory:
    the process stays as large as it ever was, and a little larger where freed blocks do not fit
    what is asked for next. No number changes. It holds for the whole process, other libraries
    included, and cannot be undone.

    Raises:
        ValueError: If the process does not run on glibc (Linux, but not Alpine's musl), or glibc
            refuses.
    """
    mallopt = _mallopt()
    if mallopt is None:
        raise ValueError(
            violation(
                "Keeping freed memory",
                "find glibc's allocator",
                f"a process on {sys.platform} without it",
                "Leave the option out: nothing but speed depends on it.",
            )
        )
    # Large blocks from the heap like any other, and a heap that is never cut.
    if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        raise ValueError(
            violation(
                "Keeping freed memory", "be allowed by glibc", "a refusal", "Leave the option out."
            )
        )
    # glibc reads these when a process starts.
    os.environ["MALLOC_MMAP_MAX_"] = "0"
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(_NEVER)


def _mallopt() -> Callable[[int, int], int] | None:
    """The function of glibc, or None where the process runs on another C library."""
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return None
    return process.mallopt
