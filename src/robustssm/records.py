"""What a run leaves on disk, as values: standard library only, so that reports need nothing else.

Files are JSON, written to a temporary name, flushed to the disk and then renamed.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any
from uuid import uuid4

JSON = Any
Flags = tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """A sign that the attack, not the model, is what failed."""

    name: str
    message: str
    severity: str = "warning"
    """"warning", or "invalid" where the number must not be believed."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number came from."""

    version: str
    commit: str | None
    command: str
    seed: int
    device: str
    packages: Mapping[str, str]
    started: str
    seconds: float | None = None


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (wilson1927probable).

    Args:
        successes: Count of successes, 0 to n.
        n: Number of trials, at least 1.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: If there are no trials, or `level` is no confidence.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"A proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}."
        )
    if not 0 < level < 1:
        raise ValueError(f"A confidence `level` must lie inside (0, 1); got {level}. Try 0.95.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == n else min(1.0, centre + half),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One flag per example and attack; accuracies are properties, so they cannot disagree."""

    clean: Flags
    survived: Mapping[str, Flags]
    """Attack label to: right on the clean input and not fooled by that attack."""
    threat: Mapping[str, JSON]
    warnings: tuple[Flagged, ...] = ()
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        if not self.clean:
            raise ValueError("An evaluation needs at least one example; got none.")
        for name in ("clean", "robust"):
            if name in self.survived:
                raise ValueError(
                    f"No attack may be labelled '{name}', which names a row of every table. "
                    "Give it a label of its own."
                )
        for name, flags in self.survived.items():
            if len(flags) != len(self.clean):
                raise ValueError(
                    f"Attack '{name}' has {len(flags)} flags for {len(self.clean)} examples; "
                    "every attack must be run on the same examples."
                )

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.clean)

    @property
    def clean_accuracy(self) -> float:
        """Share of examples classified correctly without attack."""
        return sum(self.clean) / self.n

    @property
    def attacks(self) -> dict[str, float]:
        """Attack label to robust accuracy under that attack alone."""
        return {name: sum(flags) / self.n for name, flags in self.survived.items()}

    @property
    def robust(self) -> Flags:
        """Right on the clean input and under every attack: the example-wise worst case."""
        rows = zip(self.clean, *self.survived.values(), strict=True)
        return tuple(all(row) for row in rows)

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that no attack fooled."""
        return sum(self.robust) / self.n

    def interval(self, attack: str | None = None, *, level: float = 0.95) -> tuple[float, float]:
        """Wilson interval over examples (not over training seeds).

        Args:
            attack: A label, "clean", or None for the worst case over all attacks.
            level: Confidence, in (0, 1).
        """
        flags = {"clean": self.clean, None: self.robust, **self.survived}[attack]
        return wilson(sum(flags), self.n, level=level)

    def to_dict(self) -> dict[str, JSON]:
        """JSON form: the flags, and the accuracies, counts and intervals they imply."""
        return {
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "attacks": self.attacks,
            "counts": {
                "clean": sum(self.clean),
                "robust": sum(self.robust),
                **{name: sum(flags) for name, flags in self.survived.items()},
            },
            "intervals": {
                "clean": self.interval("clean"),
                "robust": self.interval(),
                **{name: self.interval(name) for name in self.survived},
            },
            "threat": dict(self.threat),
            "warnings": [asdict(w) for w in self.warnings],
            "provenance": asdict(self.provenance) if self.provenance else None,
            "flags": {
                "clean": [int(f) for f in self.clean],
                **{name: [int(f) for f in flags] for name, flags in self.survived.items()},
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, JSON]) -> "EvaluationResult":
        """The inverse of `to_dict`; derived numbers are recomputed from the flags."""
        flags = {name: tuple(bool(f) for f in row) for name, row in data["flags"].items()}
        provenance = data.get("provenance")
        return cls(
            clean=flags.pop("clean"),
            survived=flags,
            threat=data["threat"],
            warnings=tuple(Flagged(**w) for w in data.get("warnings", ())),
            provenance=Provenance(**provenance) if provenance else None,
        )


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl: what was measured after `step` optimiser steps."""

    kind: str
    """"step" for a training step, "epoch" for the figures at the end of an epoch."""
    epoch: int
    step: int
    values: Mapping[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of JSON, without the newline."""
        head = {"kind": self.kind, "epoch": self.epoch, "step": self.step}
        assert not head.keys() & self.values.keys(), "a value is called as the record's own fields"
        return json.dumps(head | dict(self.values))

    @classmethod
    def from_line(cls, line: str) -> "StepRecord":
        """The inverse of `to_line`."""
        data = json.loads(line)
        return cls(
            kind=data.pop("kind"), epoch=data.pop("epoch"), step=data.pop("step"), values=data
        )


def write_json(path: Path, data: JSON) -> None:
    """Writes JSON so that a reader sees either the old file or the whole new one."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=True) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary name beside `path`, flushes to the disk, renames.

    Raises:
        OSError: If the disk is full or not writable; `path` is then as it was, and no temporary
            file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp, whose files nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> JSON:
    """Reads a JSON file.

    Raises:
        ValueError: If it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a JSON file; it is damaged ({error}). "
            "Restore it or remove it and run again."
        ) from None


def read_records(path: Path) -> Iterator[StepRecord]:
    """Reads metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        ValueError: If any other line is not JSON; names the file and line.
    """
    # What follows the last newline is empty, or a line inside which the writer was killed.
    *complete, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(complete, 1):
        try:
            record = StepRecord.from_line(line.decode())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} must be a record; it is damaged ({error}). "
                "Remove the line, or the file, and run again."
            ) from None
        yield record
