"""The directory of a run: its files, its lock, and how an interrupted one is picked up again."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustssm.core.config import from_dict, to_dict
from robustssm.core.errors import CorruptFile
from robustssm.core.lock import locked
from robustssm.experiment.settings import Experiment
from robustssm.records import Provenance, StepRecord, read_json, read_records, write_json

_SECONDS_BETWEEN_WRITES = 1.0


class RunDirectory:
    """Names and guards the files of one run.

    recipe.json, provenance.json, metrics.jsonl, checkpoints/{last,best,epoch_*}/ and
    evaluation.json.
    """

    def __init__(self, path: Path):
        """Names the directory; nothing is read or written yet."""
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.evaluation = path / "evaluation.json"
        self._waiting: list[str] = []
        self._written = -math.inf

    def checkpoint(self, name: str) -> Path:
        """Place of the checkpoint `name`: "last", "best" or "epoch_N"."""
        return self.path / "checkpoints" / name

    def locked(self) -> AbstractContextManager[None]:
        """Holds the directory for this process; the system lets go of it when the process dies.

        Raises:
            RunInUse: If another process holds it.
        """
        return locked(self.path)

    def begin(self, recipe: Mapping[str, Any], provenance: Provenance, *, resume: bool) -> None:
        """Writes recipe.json and provenance.json, or checks that a run to be resumed is the same.

        Args:
            recipe: {"recipe": name, "overrides": {...}, "experiment": settings}.
            provenance: Of this process.
            resume: Whether to go on with what is there.

        Raises:
            FileExistsError: If there is a run with a checkpoint already and `resume` is false.
            ValueError: If the run there has other settings; names them.
        """
        path = self.path / "recipe.json"
        record = asdict(provenance) | {"resumed": []}
        trained = (self.path / "checkpoints").exists()
        if path.exists() and trained:
            if not resume:
                raise FileExistsError(
                    f"{self.path} must be new or empty of runs; it holds one already. Continue it "
                    "with --resume, or choose another --out."
                )
            recorded = read_recipe(self.path)["experiment"]
            _refuse_other(
                self.path, completed(recorded, recipe["experiment"]), recipe["experiment"]
            )
            record = self._provenance()
            record["resumed"] = [*record.get("resumed", []), asdict(provenance)]
        else:
            write_json(path, dict(recipe))
        write_json(self.path / "provenance.json", record)

    def finish(self, seconds: float) -> None:
        """Notes in provenance.json how long the work took, over all of the run's processes."""
        record = self._provenance()
        spent = (record.get("seconds") or 0.0) + seconds
        write_json(self.path / "provenance.json", record | {"seconds": round(spent, 1)})

    def append(self, record: StepRecord) -> None:
        """Adds a line to metrics.jsonl, which is opened once a second at most.

        Lines wait in memory for `write`, `flush`, `rewind`, or the first line after that second. A
        killed process loses those that wait, none of which is older than a checkpoint.
        """
        self._waiting.append(record.to_line() + "\n")
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Hands the lines that wait to the system, which keeps them if this process is killed."""
        lines, self._waiting = self._waiting, []
        if lines:
            with self.metrics.open("a") as file:
                file.write("".join(lines))
        self._written = time.monotonic()

    def flush(self) -> None:
        """Sees metrics.jsonl onto the disk, lines that wait included, as before a checkpoint."""
        self.write()
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, *, epoch: int, step: int) -> None:
        """Drops the lines written after the checkpoint of `epoch` epochs and `step` steps."""
        self.write()
        if not self.metrics.exists():
            return
        kept = [
            r.to_line() + "\n"
            for r in read_records(self.metrics)
            if r.step < step or (r.step == step and (r.kind != "epoch" or r.epoch <= epoch))
        ]
        new = self.metrics.with_name(".metrics.jsonl.new")
        new.write_text("".join(kept))
        new.replace(self.metrics)

    def _provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the recipe.json of a run.

    Raises:
        FileNotFoundError: If `path` is no run directory.
        CorruptFile: If the file is damaged.
    """
    file = path / "recipe.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{path} must be a run directory; it has no recipe.json. "
            "Give the --out of a `robustssm run`."
        )
    recipe = read_json(file)
    if not isinstance(recipe, dict) or "experiment" not in recipe:
        raise CorruptFile(f"{file} must hold the settings of a run; 'experiment' is missing.")
    return recipe


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted names, with both values, of what differs between two settings in JSON form."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    return [] if old == new else [f"{at}: {json.dumps(old)} there, {json.dumps(new)} now"]


def completed(old: Any, new: Mapping[str, Any]) -> Any:
    """A recorded experiment, with the defaults of settings that did not exist when it ran.

    And with the pieces in which batches are now processed, as they change nothing but memory.
    """
    try:
        old = to_dict(from_dict(Experiment, old))
    except (ValueError, TypeError):  # of another version; what differs is told
        pass
    return {**old, **{k: new[k] for k in ("micro_batches",) if k in new}}


def _refuse_other(path: Path, old: Any, new: Any) -> None:
    changed = differences(old, new)
    if changed:
        raise ValueError(
            f"A resumed run must keep its settings; {path} differs in\n  "
            + "\n  ".join(changed[:20])
            + "\nResume with the recipe it began with, or choose another --out."
        )
