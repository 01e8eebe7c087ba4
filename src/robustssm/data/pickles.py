"""Reads arrays and plain values out of pickles, and runs nothing that a pickle asks for.

A pickle is a program: its GLOBAL instructions name any importable object, its REDUCE instructions
call it. Here no name is ever imported. The few names under which numpy files its arrays stand for
recorders of our own, which note what numpy would have been told; a recorded array is then decoded
by `numpy.frombuffer`, after its type and size were checked. Every other name is refused.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from robustssm.core.errors import CorruptFile

_TYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class _Refused(Exception):
    """Something in the pickle that plain data has no use for."""


def read_pickle(path: Path, data: bytes) -> Any:
    """Reads a pickle made of dicts, lists, tuples, text, bytes, numbers, None and numpy arrays.

    Args:
        path: The file's name, for messages.
        data: Its content; text of Python 2 comes out as bytes.

    Returns:
        The value; arrays are new and writable.

    Raises:
        CorruptFile: If the pickle asks for anything else (nothing of it is run), or is damaged.
    """
    try:
        _check_places(data)
        return _plain(_Unpickler(io.BytesIO(data), encoding="bytes").load())
    except _Refused as refusal:
        raise CorruptFile(
            f"{path} must be a pickle of plain data and arrays; it asks for {refusal}, which was "
            "refused: nothing was run. Do not load it by other means; fetch the official file."
        ) from None
    except RecursionError:
        raise CorruptFile(
            f"{path} must be a pickle of plain data; it is nested too deep."
        ) from None
    except _DAMAGE as error:
        raise CorruptFile(
            f"{path} must be a whole pickle; it is damaged or something else "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from None


_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
"""What unpickling damaged bytes may raise, according to the pickle module's documentation."""


class _Recorder:
    """Stands for a name in a pickle.

    Being a class with `__setstate__`, it cannot be tampered with: a BUILD instruction reaches that
    method, never the attributes.
    """

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"a state for {type(self).__name__.lstrip('_')}")


class _Dtype(_Recorder):
    """numpy.dtype: called with a type code, then told its byte order."""

    def __init__(self, code: Any, *flags: Any):
        del flags  # align and copy, without meaning for plain types
        self.code, self.order = _text(code), "|"
        if self.code not in _TYPES:
            raise _Refused(f"an array of type {self.code!r}")

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|") or any(part is not None for part in state[2:5]):
            raise _Refused("an array of a structured type")
        self.order = order


class _Array(_Recorder):
    """numpy.ndarray: made empty, then told its shape, type and bytes."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _decode(raw, dtype, shape, "F" if fortran else "C")


class _Reconstruct(_Recorder):
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array."""

    def __new__(cls, *arguments: Any) -> Any:
        if arguments[0] is not _Array:
            raise _Refused("an array of another class")
        return _Array()


class _FromBuffer(_Recorder):
    """numpy's _frombuffer(bytes, dtype, shape, order): a whole array (protocol 5)."""

    def __new__(cls, raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
        array = _Array()
        array.value = _decode(raw, dtype, shape, order)
        return array


class _Encode(_Recorder):
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes in protocol 2."""

    def __new__(cls, text: Any, encoding: Any) -> Any:
        if not isinstance(text, str) or _text(encoding) != "latin1":
            raise _Refused("an encoding other than latin1")
        return text.encode("latin-1")


_NAMES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object stored elsewhere")


def _check_places(data: bytes) -> None:
    """Walks the instructions without obeying any; refuses to remember things at absurd places.

    The unpickler makes a table as long as the largest place: one damaged byte could cost gigabytes.
    """
    for instruction, place, _ in pickletools.genops(data):
        if instruction.name.endswith("PUT") and not 0 <= int(place or 0) <= len(data):
            raise ValueError(f"place {place} in {len(data)} bytes")


def _text(value: Any) -> Any:
    """Python 2's text, which arrives as bytes, as text."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _decode(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not (isinstance(dtype, _Dtype) and isinstance(raw, bytes | bytearray)):
        raise _Refused("an array of objects")
    kind = np.dtype(dtype.order + dtype.code)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or order not in ("C", "F"):
        raise _Refused(f"an array of shape {shape!r}")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and type {kind}")
    native = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))
    return native.reshape(shape, order=order)


def _plain(value: Any) -> Any:
    """The value with recorded arrays in their places, and without anything else of ours."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    kind = value if isinstance(value, type) else type(value)
    raise _Refused(f"a value of type {kind.__name__.lstrip('_')}")
