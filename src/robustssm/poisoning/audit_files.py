"""A user's own sequences, read in pieces: arrays, `.npy`, `.npz` and `.csv`."""

import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustssm.core.errors import CorruptFile, violation

NAMES = ("x", "x_train", "arr_0")
"""Arrays of an `.npz` that are taken without being asked for, in this order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Sequences that can be read in pieces, more than once."""

    name: str
    pieces: Callable[[int], Iterator[np.ndarray]]
    """Given how many numbers a piece may hold: arrays (n, length) or (n, length, channels)."""


def source_of(sequences: np.ndarray | Path, *, array: str | None = None) -> Source:
    """Prepares an array or a file.

    Args:
        sequences: An array, or a path that ends in .npy, .npz or .csv.
        array: Which array of an .npz.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptFile: If the file is not what its name says.
        ValueError: If what it holds are not sequences.
    """
    if isinstance(sequences, np.ndarray):
        _check_shape("The array", sequences.shape, sequences.dtype)
        return Source(name="array", pieces=lambda room: _rows_of(sequences, room))
    if not sequences.is_file():
        raise FileNotFoundError(f"{sequences} must be a file of sequences; there is none.")
    if sequences.stat().st_size == 0:
        raise CorruptFile(f"{sequences} must hold sequences; the file is empty.")
    kind = sequences.suffix.lower()
    if kind == ".npy":
        return _npy(sequences)
    if kind == ".npz":
        return _npz(sequences, array)
    if kind == ".csv":
        return Source(name=sequences.name, pieces=lambda room: _csv_pieces(sequences, room))
    raise ValueError(violation("A file of sequences", "end in .npy, .npz or .csv", sequences.name))


def _npy(path: Path) -> Source:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise CorruptFile(
            f"{path} must be a .npy file of numbers; {error}. Save it anew."
        ) from None
    _check_shape(str(path), values.shape, values.dtype)
    return Source(name=path.name, pieces=lambda room: _rows_of(values, room))


def _rows_of(values: np.ndarray, room: int) -> Iterator[np.ndarray]:
    step = max(1, room // max(1, int(np.prod(values.shape[1:]))))
    for begin in range(0, len(values), step):
        yield np.array(values[begin : begin + step], dtype=np.float64)


def _npz(path: Path, array: str | None) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            chosen = _chosen(path, names, array)
            with archive.open(f"{chosen}.npy") as file:
                shape, fortran, dtype = _header(file)
    except zipfile.BadZipFile:
        raise CorruptFile(f"{path} must be an .npz file; it is damaged. Save it anew.") from None
    title = f"`{chosen}` in {path}"
    _check_shape(title, shape, dtype)
    if fortran:
        raise ValueError(
            violation(title, "be stored row by row", "Fortran order", "Save it as an .npy file.")
        )

    def pieces(room: int) -> Iterator[np.ndarray]:
        per_row = int(np.prod(shape[1:]))
        step = max(1, room // per_row)
        with zipfile.ZipFile(path) as archive, archive.open(f"{chosen}.npy") as file:
            _header(file)
            for begin in range(0, shape[0], step):
                count = min(step, shape[0] - begin)
                raw = file.read(count * per_row * dtype.itemsize)
                if len(raw) < count * per_row * dtype.itemsize:
                    raise CorruptFile(f"{title} is cut off after row {begin}. Save it anew.")
                yield np.frombuffer(raw, dtype).reshape(count, *shape[1:]).astype(np.float64)

    return Source(name=f"{path.name}: {chosen}", pieces=pieces)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    return (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)


def _chosen(path: Path, names: list[str], array: str | None) -> str:
    if array is None:
        found = [name for name in NAMES if name in names] or (names if len(names) == 1 else [])
        if found:
            return found[0]
    elif array in names:
        return array
    wanted = f"an array called '{array}'" if array else f"one of {', '.join(NAMES)}"
    raise ValueError(
        violation(str(path), f"hold {wanted}", ", ".join(names) or "nothing", "Say `array=...`.")
    )


def _check_shape(title: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "buif":
        raise ValueError(violation(title, "hold real numbers", f"the type {dtype}"))
    if len(shape) not in (2, 3):
        raise ValueError(violation(title, "have shape (n, length) or (n, length, channels)", shape))
    if 0 in shape:
        raise ValueError(violation(title, "hold sequences", f"shape {shape}, which is empty"))


def _csv_pieces(path: Path, room: int) -> Iterator[np.ndarray]:
    """Rows of numbers; a first row without any number is a header."""
    held: list[list[float]] = []
    length: int | None = None
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if not cells or (number == 1 and not any(_is_number(cell) for cell in cells)):
                continue
            row = [_number(path, number, place, cell) for place, cell in enumerate(cells, 1)]
            length = len(row) if length is None else length
            if len(row) != length:
                raise ValueError(
                    violation(
                        f"{path}, row {number}",
                        f"have {length} cells like the rows before it",
                        len(row),
                        "Cut sequences to one length, or pad them with zeros at the beginning.",
                    )
                )
            held.append(row)
            if len(held) * length >= room:
                yield np.array(held)
                held = []
    if held:
        yield np.array(held)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, row: int, column: int, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(
            violation(f"{path}, row {row}, column {column}", "be a number", repr(cell))
        ) from None
