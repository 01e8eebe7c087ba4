"""What an evaluation has finished: in memory, or on disk so that a kill loses little.

On disk a journal is a directory: `header.json`, which says what is evaluated (model and data by
content hash), and one compressed file per chunk of examples, attack and stage. It says for every
example whether it was fooled and by which part of the attack (target or restart), and holds the
points that fool. Files are written whole or not at all. While a chunk is attacked in parts, each
finished part lies beside them until the chunk's file is written.
"""

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.core.errors import CorruptFile
from robustssm.records import read_json, write_bytes, write_json

FORMAT = 1


class Unit(NamedTuple):
    """One stage of one attack on one chunk of the examples."""

    chunk: int
    attack: int
    stage: int


@dataclass(frozen=True)
class Outcome:
    """What became of the examples that a unit was given."""

    rows: Int[Tensor, " rows"]
    """Which examples of the data; those that were wrong without attack come last."""
    right: Bool[Tensor, " rows"]
    """Whether the model is right on the attack's point."""
    part: Int[Tensor, " rows"]
    """Target or restart that the point is from; -1 where the attack does not say."""
    nan: Bool[Tensor, " rows"]
    """Whether the logits at the point hold a NaN."""
    fooled: Int[Tensor, " fooled"]
    """Examples that were right before and are wrong now."""
    points: Float[Tensor, "fooled ..."]
    """The points that fool them."""
    passes: tuple[int, int, int]
    """Calls of the model, examples forward, examples backward."""


@dataclass(frozen=True)
class Piece:
    """What an attack found for some of a unit's examples, before the unit is finished."""

    rows: Int[Tensor, " rows"]
    """Which examples of the data."""
    points: Float[Tensor, "rows ..."]
    part: Int[Tensor, " rows"]
    """As of `Outcome`."""
    passes: tuple[int, int, int]


class Journal:
    """Finished units, in memory."""

    persistent = False

    def __init__(self) -> None:
        """Starts empty."""
        self._units: dict[Unit, Outcome] = {}

    def load(self, unit: Unit) -> Outcome | None:
        """The unit's outcome, or None if it is not finished."""
        return self._units.get(unit)

    def store(self, unit: Unit, outcome: Outcome) -> None:
        """Keeps a finished unit, and no piece of it any longer."""
        self._units[unit] = outcome

    def load_piece(self, unit: Unit, number: int) -> Piece | None:
        """A piece of a unit that is not finished; None if it is not kept."""
        del unit, number
        return None

    def store_piece(self, unit: Unit, number: int, piece: Piece) -> None:
        """Keeps a piece where a kill would lose it: not in memory."""
        del unit, number, piece


class DiskJournal(Journal):
    """Finished units, in a directory."""

    persistent = True

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool | None):
        """Begins a journal, or goes on with the one that is there.

        Args:
            path: The directory; what an earlier evaluation left there is removed without `resume`.
            header: What is evaluated, as JSON.
            resume: Go on with a journal of the same evaluation; where there is none, begin one.
                None: if the journal there is of another evaluation, begin anew.

        Raises:
            ValueError: If the journal there is of another model, data set or evaluation.
            OSError: If the directory cannot be written.
        """
        self.path = path
        wanted = json.loads(json.dumps({"format": FORMAT, **header}))
        file = path / "header.json"
        if resume is not False and file.exists():
            there = read_json(file)
            if resume:
                _refuse_other(path, there, wanted)
            if there == wanted:
                for finished in (path / "units").glob("*.npz"):  # killed before it removed them
                    self._drop_pieces(finished)
                return
        if file.exists():
            shutil.rmtree(path)
        write_json(file, wanted)

    @staticmethod
    def finished(path: Path) -> int:
        """How many units the journal in a directory holds."""
        return sum(1 for _ in (path / "units").glob("*.npz"))

    def load(self, unit: Unit) -> Outcome | None:
        """The unit's outcome, or None if it is not finished.

        Raises:
            CorruptFile: If the file is damaged; nothing is overwritten.
        """
        found = _read(self._file(unit), ("rows", "right", "part", "nan", "fooled", "points"))
        return None if found is None else Outcome(**found)

    def store(self, unit: Unit, outcome: Outcome) -> None:
        """Writes a finished unit, then removes its pieces.

        Raises:
            OSError: If the disk is full or not writable; what is there stays whole.
        """
        file = self._file(unit)
        _write(file, vars(outcome))
        self._drop_pieces(file)

    def load_piece(self, unit: Unit, number: int) -> Piece | None:
        """A piece of a unit that is not finished; None if it is not kept.

        Raises:
            CorruptFile: If the file is damaged; nothing is overwritten.
        """
        found = _read(self._piece(unit, number), ("rows", "points", "part"))
        return None if found is None else Piece(**found)

    def store_piece(self, unit: Unit, number: int, piece: Piece) -> None:
        """Writes a piece of a unit.

        Raises:
            OSError: If the disk is full or not writable; what is there stays whole.
        """
        _write(self._piece(unit, number), vars(piece))

    def _drop_pieces(self, file: Path) -> None:
        for piece in (self.path / "pieces").glob(f"{file.stem}-*.npz"):
            piece.unlink(missing_ok=True)

    def _file(self, unit: Unit) -> Path:
        return self.path / "units" / f"{unit.chunk:05d}-{unit.attack:02d}-{unit.stage:02d}.npz"

    def _piece(self, unit: Unit, number: int) -> Path:
        return self.path / "pieces" / f"{self._file(unit).stem}-{number:03d}.npz"


def _write(file: Path, values: Mapping[str, Any]) -> None:
    arrays: dict[str, Any] = {
        name: value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        for name, value in values.items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(file, content.getvalue())


def _read(file: Path, names: Sequence[str]) -> dict[str, Any] | None:
    """The arrays of these names as tensors, and the passes; None if there is no file."""
    if not file.exists():
        return None
    try:
        # Opened here, as numpy leaves a damaged file open; it checks the CRC of every array.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            found = {name: torch.from_numpy(stored[name]) for name in names}
            calls, forwards, backwards = stored["passes"].tolist()
        return {**found, "passes": (calls, forwards, backwards)}
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(
            f"{file} must be a piece of an evaluation's journal; it is damaged ({error}). "
            "Remove it and go on with --resume: it is then computed again."
        ) from None


def _refuse_other(path: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    keys = [*wanted, *(key for key in there if key not in wanted)]
    changed = [key for key in keys if there.get(key) != wanted.get(key)]
    if changed:
        what = ", ".join(key.replace("_", " ") for key in changed)
        raise ValueError(
            f"A journal must be of the same model, data and attacks to be resumed; {path} differs "
            f"in: {what}. Evaluate without --resume, which begins anew, or write to another file."
        )
