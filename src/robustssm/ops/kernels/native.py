"""The compiled CPU kernels: found, checked and called; torch does their work where they are not.

The library is plain C, so calls go through ctypes and leave the interpreter lock to other threads.
It is looked for once, beside this file, at the level of the processor.
"""

import ctypes
import functools
import importlib
import pkgutil
import struct
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
_NOT_BUILT = "They were not built, as at installation there was no working C compiler."
_REBUILD = (
    "With a C compiler present, install robustssm again: pip install --force-reinstall --no-deps "
    "--no-cache-dir, as pip would else take the build that it remembers."
)

_declared: set[str] = set()


@dataclass(frozen=True)
class State:
    """Whether there are compiled kernels, and if not, why."""

    level: str | None
    """The level in use: x86_64_v4, x86_64_v3 or generic; None if there is none."""
    width: int
    """Floats in a vector; 0 if there is none."""
    reason: str
    """Why there is none; empty if there is."""
    refused: tuple[str, ...] = ()
    """Libraries that are here but cannot be used, each with its reason: a damaged installation."""


@dataclass(frozen=True)
class _Found:
    library: ctypes.CDLL | None
    level: str | None
    refused: tuple[str, ...] = ()


class _Overridden:
    """What tests and comparisons have changed: how many `without()` are open, and `at_level`."""

    count = 0
    chosen: _Found | None = None


def available(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can take these tensors: float32, on the CPU, dense."""
    if _Overridden.count or _library() is None:
        return False
    return all(
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not x.is_neg()  # the imaginary part of a conjugate: its memory has the other sign
        for x in tensors
    )


def state() -> State:
    """What was found; reports nothing and raises nothing."""
    found = _Overridden.chosen or _found()
    if found.library is None:
        reasons = found.refused or (_NOT_BUILT,)
        reason = " ".join(["No compiled CPU kernels.", *reasons, _REBUILD])
        return State(None, 0, reason, found.refused)
    return State(found.level, found.library.robustssm_vector_width(), "", found.refused)


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
    _declared.add(name)

    def call(*arguments: Tensor | ctypes.Array | int | float | None) -> None:
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
    before, _Overridden.chosen = _Overridden.chosen, _Found(_checked(paths[0]), level)
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
    return _Overridden.chosen.library if _Overridden.chosen else _reported()


@functools.cache
def _reported() -> ctypes.CDLL | None:
    found = _found()
    if found.library is None:
        text = f"{state().reason} Slower torch code runs instead."
    elif found.refused:
        better = " ".join(found.refused)
        text = f"Compiled CPU kernels of level {found.level} run where better ones would. {better}"
        text = f"{text} {_REBUILD}"
    else:
        return found.library
    warnings.warn(text, RuntimeWarning, stacklevel=4)
    return found.library


@functools.cache
def _found() -> _Found:
    """The first library that loads, and what was wrong with better ones."""
    refused = []
    for level in (*_LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        for path in _files(level):
            try:
                return _Found(_checked(path), level, tuple(refused))
            except (OSError, AttributeError, ValueError) as error:
                refused.append(f"{path.name}: {error}.")
    return _Found(None, None, tuple(refused))


def _files(level: str) -> list[Path]:
    here = Path(__file__).parent
    paths = (here / f"_native_{level}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return [path for path in paths if path.exists()]


def _checked(path: Path) -> ctypes.CDLL:
    _refuse_cut_off(path.read_bytes())
    # After torch, so that both use one OpenMP runtime and its threads.
    library = ctypes.CDLL(str(path))
    version = library.robustssm_native_version
    version.restype = library.robustssm_vector_width.restype = ctypes.c_int64
    if version() != VERSION:
        raise ValueError(f"it is version {version()} where version {VERSION} is needed")
    for name in _needed():
        getattr(library, name)
    return library


def _refuse_cut_off(content: bytes) -> None:
    """Raises if an ELF file (Linux) lacks its end: loading it would kill the process (SIGBUS)."""
    if content[:6] != b"\x7fELF\x02\x01":
        return  # of another format, or none: its loader looks
    try:
        (start,) = struct.unpack_from("<Q", content, 32)
        size, count = struct.unpack_from("<HH", content, 54)
        ends = [
            sum(struct.unpack_from("<Q16xQ", content, start + number * size + 8))
            for number in range(count)
        ]
    except struct.error:
        ends = [len(content) + 1]
    if max(ends, default=0) > len(content):
        raise ValueError(f"it is cut off after {len(content)} bytes")


def _needed() -> list[str]:
    """The functions that the wrappers beside this file declare."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("cpu_"):
            importlib.import_module(f"{__package__}.{module.name}")
    return sorted(_declared)
