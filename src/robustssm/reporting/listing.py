"""Runs at a glance: what became of each run directory, from little reading and nothing disturbed.

Unlike `load`, which checks every flag before a report repeats a number, a listing believes the
accuracies that evaluation.json states, and looks at runs that are not finished too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from robustssm.core.errors import CorruptFile, unknown
from robustssm.core.lock import in_use
from robustssm.records import read_json
from robustssm.reporting import names
from robustssm.reporting.load import EVALUATION, METRICS, PROVENANCE, RECIPE, named

Status = Literal["finished", "training", "evaluating", "interrupted", "not begun", "damaged"]
_EPOCH = b'{"kind": "epoch"'
"""How the line of an epoch begins, as `StepRecord` writes it; others need no reading."""
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError)


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """What an evaluation says of a checkpoint, as shares of its examples."""

    clean: float
    robust: float | None
    """In the worst case over all attacks; None if there was no attack."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run directory in a line."""

    name: str
    """Short and unique in the listing."""
    path: str
    status: Status
    reason: str = ""
    """Why it is damaged."""
    recipe: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    epoch: int = 0
    """Epochs finished."""
    epochs: int | None = None
    """Epochs asked for."""
    best: Accuracies | None = None
    last: Accuracies | None = None
    verdict: str = ""
    """On the best checkpoint's numbers."""
    seconds: float | None = None
    """Over all processes of a finished run; else those of the epochs on record."""
    started: str = ""
    cost: Mapping[str, Any] | None = None
    """Passes through the model, if they are on record (`training.cost.Cost`)."""

    @property
    def progress(self) -> str:
        """The status in words, with the epochs where they are not all done."""
        partly = self.status in ("training", "interrupted") and self.epochs is not None
        return f"{self.status} {self.epoch}/{self.epochs}" if partly else self.status

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


COLUMNS = ("name", "recipe", "status", "seed", "clean", "robust", "verdict", "time", "started")
"""By which a listing can be sorted: accuracies from the highest down, others upwards."""


def listing(paths: Sequence[Path], *, sort: str = "name", filter: str = "") -> tuple[Listed, ...]:
    """Every run at or below the paths; a damaged one is listed with its reason.

    Args:
        paths: Run directories, or directories that hold them at any depth.
        sort: One of `COLUMNS`. Runs without a value there come last.
        filter: Keep runs in whose name, recipe, overrides, status or verdict this text occurs, in
            capitals or not.

    Raises:
        ValueError: If a path is no directory, or there is no such column.
    """
    if sort not in COLUMNS:
        raise ValueError(unknown("column", sort, COLUMNS))
    found = [glance(path, name=name) for name, path in named(paths)]
    wanted = [run for run in found if filter.lower() in _text(run).lower()]
    return tuple(sorted(wanted, key=lambda run: (_key(run, sort), run.name)))


def glance(path: Path, *, name: str) -> Listed:
    """What can be said of one run directory.

    Args:
        path: The directory.
        name: What to call it.
    """
    try:
        return _read(path, name)
    except _DAMAGE as error:
        said = str(error) if isinstance(error, ValueError | OSError) else repr(error)
        reason = str(names.printable(said.replace(f"{path}/", "")))
        return Listed(name=name, path=str(path), status="damaged", reason=reason)


def _read(path: Path, name: str) -> Listed:
    recipe = _object(path / RECIPE)
    experiment = recipe.get("experiment")
    if not isinstance(experiment, dict):
        raise CorruptFile(f"{RECIPE} must hold the settings of a run under 'experiment'.")
    provenance = _object(path / PROVENANCE)
    spent = _epochs(path / METRICS)
    evaluation = _object(path / EVALUATION) if (path / EVALUATION).exists() else None
    epoch, epochs = max(spent, default=0), experiment.get("epochs")
    seconds = provenance.get("seconds")
    checkpoints = (evaluation or {}).get("checkpoints") or {"best": evaluation or {}}
    return Listed(
        name=name,
        path=str(path),
        status=_status(path, experiment, epoch, evaluated=evaluation is not None),
        recipe=str(names.printable(str(recipe.get("recipe", "")))),
        overrides=names.printable({k: str(v) for k, v in (recipe.get("overrides") or {}).items()}),
        seed=experiment.get("seed", provenance.get("seed")),
        epoch=epoch,
        epochs=epochs,
        best=_accuracies(checkpoints.get("best")),
        last=_accuracies(checkpoints.get("last")),
        verdict=str((evaluation or {}).get("verdict", "")),
        seconds=sum(spent.values()) if seconds is None else float(seconds),
        started=str(provenance.get("started", "")),
        cost=recipe.get("cost"),
    )


def _status(path: Path, experiment: Mapping[str, Any], epoch: int, *, evaluated: bool) -> Status:
    """From the lock, and from whether training came to its end.

    Nothing on disk says that an early stop was one but the evaluation that follows it.
    """
    judged = evaluated or (path / "journal").exists()
    stopped = experiment.get("early_stopping") is not None and judged
    trained = stopped or epoch >= experiment.get("epochs", 0) or not (path / METRICS).exists()
    if in_use(path):
        return "evaluating" if trained and judged else "training"
    if trained and evaluated:
        return "finished"
    return "interrupted" if epoch or (path / "checkpoints").exists() else "not begun"


def _epochs(path: Path) -> dict[int, float]:
    """Seconds of each finished epoch; a last line cut off by a kill is left out."""
    if not path.exists():
        return {}
    *lines, _ = path.read_bytes().split(b"\n")
    found = {}
    for number, line in enumerate(lines, 1):
        if line.startswith(_EPOCH):
            try:
                record = json.loads(line)
                found[int(record["epoch"])] = float(record.get("seconds", 0.0))
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptFile(f"{path}, line {number} is damaged ({error}).") from None
    return found


def _accuracies(part: Any) -> Accuracies | None:
    if not part:
        return None
    clean, robust = part["clean_accuracy"], part["robust_accuracy"]
    for value in (clean, robust):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise CorruptFile(f"{EVALUATION}: an accuracy must be in [0, 1]; got {value!r:.40}.")
    return Accuracies(clean=clean, robust=robust if part.get("attacks") else None)


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CorruptFile(f"{path.name} is missing.")
    found = read_json(path)
    if not isinstance(found, dict):
        raise CorruptFile(f"{path} must be an object; got {json.dumps(found)[:80]}.")
    return found


def _text(run: Listed) -> str:
    changes = (f"{key}={value}" for key, value in run.overrides.items())
    return " ".join((run.name, run.recipe, *changes, run.status, run.verdict))


def _key(run: Listed, column: str) -> tuple[bool, Any]:
    """What sorts a run: those without a value after all others."""
    value: Any = {
        "clean": run.best and -run.best.clean,
        "robust": None if run.best is None or run.best.robust is None else -run.best.robust,
        "time": run.seconds,
    }.get(column, getattr(run, column, None))
    missing = value is None or value == ""
    return missing, 0 if missing else value
