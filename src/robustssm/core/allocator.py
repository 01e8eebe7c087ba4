"""How the C library gets memory: of this process an explicit choice, never made by itself.

By default glibc takes every large block (from 128 KiB; the limit adapts, up to 32 MiB) from the
system by itself and gives it back when it is freed, so a tensor of tens of MiB costs page faults
each time it is made, and on a CPU they take longer than many operations on it.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping

from robustssm.core.errors import violation

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
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


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a process that is started gets large pages for its tensors.

    glibc from 2.35 on then asks Linux for pages of 2 MiB instead of 4 KiB wherever it takes memory,
    which Linux grants unless it is set to "never". A pass over tensors of some MiB then waits less
    for the tables of pages and faults less often; blocks take up to 2 MiB more. Other systems take
    no notice, and no number changes. Where the environment has a setting of its own, that stays.

    Args:
        environment: Of the process to be started.

    Source: the manual of the GNU C library, "Memory Allocation Tunables".
    """
    given = environment.get(_TUNABLES, "")
    if not sys.platform.startswith("linux") or _HUGE_PAGES in given:
        return dict(environment)
    tunables = [*([given] if given else []), f"{_HUGE_PAGES}=1"]
    return {**environment, _TUNABLES: ":".join(tunables)}


def _mallopt() -> Callable[[int, int], int] | None:
    """The function of glibc, or None where the process runs on another C library."""
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return None
    return process.mallopt
