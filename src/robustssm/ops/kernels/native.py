"""The compiled CPU kernels: found, checked and called; torch does their work where they are not.

The library is plain C, so calls go through ctypes and leave the interpreter lock to other threads.
It is looked for once, beside this file, at the level of the processor.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

VERSION = 1
"""What `robustssm_native_version` of a fitting library returns (csrc/kernels.h)."""

_LEVELS = {"AVX512": ("x86_64_v4", "x86_64_v3"), "AVX2": ("x86_64_v3",)}
_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_REBUILD = "Reinstall with a C compiler present (pip install --force-reinstall robustssm)."


@dataclass(frozen=True)
class State:
    """Whether there are compiled kernels, and if not, why."""

    level: str | None
    """The level in use: x86_64_v4, x86_64_v3 or generic; None if there is none."""
    width: int
    """Floats in a vector; 0 if there is none."""
    reason: str
    """Why there is none; empty if there is."""


class _Overridden:
    """What tests and comparisons have changed: how many `without()` are open, and `at_level`."""

    count = 0
    chosen: tuple[ctypes.CDLL, str, str] | None = None


def available(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can take these tensors: float32, on the CPU, dense."""
    if _Overridden.count or _library() is None:
        return False
    return all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided
        for x in tensors
    )


def state() -> State:
    """What was found; reports nothing and raises nothing."""
    library, level, reason = _Overridden.chosen or _found()
    if library is None:
        return State(None, 0, reason)
    return State(level, library.robustssm_vector_width(), "")


def vector_width() -> int:
    """Floats in a vector of the library in use."""
    return state().width


def function(name: str, signature: str) -> Callable[..., None]:
    """A function of the library, to be called with tensors, integers and None for NULL.

    Args:
        name: Its name in csrc.
        signature: One letter for each argument, p pointer, i 64-bit integer, f float; the last
            argument, the number of threads, is added here.

    Raises:
        MemoryError: When called, if the C side could not allocate its scratch memory.
    """

    def call(*arguments: Tensor | int | float | None) -> None:
        raw = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        if _bound(_library(), name, signature)(*raw, torch.get_num_threads()):
            raise MemoryError(
                f"The kernel `{name}` needs scratch memory for each thread; the system had none. "
                "Use fewer threads or a smaller batch."
            )

    return call


@contextmanager
def without() -> Iterator[None]:
    """The enclosed lines, in all threads, run without the compiled kernels: for comparisons."""
    _Overridden.count += 1
    try:
        yield
    finally:
        _Overridden.count -= 1


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """The enclosed lines, in all threads, run the library of that level: for tests.

    Raises:
        ValueError: If it is not there.
    """
    paths = _files(level)
    if not paths:
        raise ValueError(f"`at_level` needs a library that was built; got '{level}'. {_REBUILD}")
    before, _Overridden.chosen = _Overridden.chosen, (_checked(paths[0]), level, "")
    try:
        yield
    finally:
        _Overridden.chosen = before


@functools.cache
def _bound(library: ctypes.CDLL, name: str, signature: str) -> Callable[..., int]:
    found = getattr(library, name)
    found.argtypes = [_KINDS[kind] for kind in signature] + [ctypes.c_int64]
    found.restype = ctypes.c_int
    return found


def _library() -> ctypes.CDLL | None:
    """The library; if there is none, says so, once."""
    return _Overridden.chosen[0] if _Overridden.chosen else _reported()


@functools.cache
def _reported() -> ctypes.CDLL | None:
    library, _, reason = _found()
    if library is None:
        warnings.warn(f"{reason} Slower torch code runs instead.", RuntimeWarning, stacklevel=4)
    return library


@functools.cache
def _found() -> tuple[ctypes.CDLL | None, str, str]:
    """The first library that loads, its level, and otherwise the reason."""
    reasons = []
    for level in (*_LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        for path in _files(level):
            try:
                return _checked(path), level, ""
            except (OSError, AttributeError, ValueError) as error:
                reasons.append(f"{path.name}: {error}.")
    if not reasons:
        reasons = ["They were not built, as at installation there was no working C compiler."]
    return None, "", " ".join(["No compiled CPU kernels.", *reasons, _REBUILD])


def _files(level: str) -> list[Path]:
    here = Path(__file__).parent
    paths = (here / f"_native_{level}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return [path for path in paths if path.exists()]


def _checked(path: Path) -> ctypes.CDLL:
    # After torch, so that both use one OpenMP runtime and its threads.
    library = ctypes.CDLL(str(path))
    version = library.robustssm_native_version
    version.restype = library.robustssm_vector_width.restype = ctypes.c_int64
    if version() != VERSION:
        raise ValueError(f"it is version {version()} where version {VERSION} is needed")
    return library
