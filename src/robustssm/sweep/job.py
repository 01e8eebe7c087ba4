"""A run of a sweep before, while and after it happens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOG = "worker.log"
"""Beside a run: what it printed, and tracebacks."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a recipe, what is changed of it, a seed and a directory."""

    name: str
    """Of the cell; alike for all its seeds."""
    recipe: str
    changes: Mapping[str, str] = field(default_factory=dict)
    """Dotted path to text, as `--set` takes them, without the seed."""
    seed: int
    directory: Path

    @property
    def overrides(self) -> dict[str, str]:
        """The changes and the seed, as `robustssm run --seed` records them."""
        return {**self.changes, "seed": str(self.seed)}

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.name} (seed {self.seed})"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"directory": str(self.directory)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Job":
        """The inverse of `to_dict`."""
        return cls(**{**data, "directory": Path(data["directory"])})


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the runs of a sweep are carried out; alike for all of them."""

    threads: int = 1
    """CPU threads of each run."""
    device: str = "auto"
    data_dir: Path | None = None
    paths: tuple[str, ...] = ()
    """Where the driver imports from, so that a worker finds its user's recipes too."""
    command: tuple[str, ...] = ()
    """What the user gave, for the provenance of the runs."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"data_dir": None if self.data_dir is None else str(self.data_dir)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Setup":
        """The inverse of `to_dict`."""
        place = data["data_dir"]
        return cls(
            threads=data["threads"],
            device=data["device"],
            data_dir=None if place is None else Path(place),
            paths=tuple(data["paths"]),
            command=tuple(data["command"]),
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, as its worker says now and then."""

    phase: str = "starting"
    """"starting", "training" or "evaluating"."""
    epoch: int = 0
    """That is being trained."""
    epochs: int = 0
    share: float = 0.0
    """Of the phase."""
    seconds_left: float | None = None
    """Of the phase; None if not known."""
    attack: str = ""
    """Label of the attack that an evaluation is at."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run of a sweep ended."""

    job: Job
    result: dict[str, Any] | None = None
    """The contents of evaluation.json; None if the run failed."""
    error: str = ""
    """Why it failed, in a sentence; the traceback is in the run's worker.log."""
    seconds: float = 0.0
    """It took in this sweep."""
    attempts: int = 0
    """How often it was begun in this sweep; 0 if its result was there already."""

    @property
    def summary(self) -> str:
        """The accuracies in percent, or why there are none."""
        if self.result is None:
            return f"failed: {self.error}"
        attacks = "  ".join(f"{k} {100 * v:5.1f}" for k, v in self.result["attacks"].items())
        return f"clean {100 * self.result['clean_accuracy']:5.1f}  {attacks}"


class Watcher:
    """Is told what happens in a sweep; every method may be overridden, none has to be."""

    def started(self, job: Job, attempt: int) -> None:
        """A run begins, for the `attempt`-th time."""

    def progressed(self, job: Job, progress: Progress) -> None:
        """A run has come so far."""

    def interrupted(self, job: Job, reason: str) -> None:
        """A run has failed for a reason that may pass, and waits for its next attempt."""

    def ended(self, outcome: Outcome) -> None:
        """A run is finished, or has failed for good."""
