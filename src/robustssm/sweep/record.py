"""What a sweep leaves on disk besides its runs: OUT/sweeps/STARTED.json, one per call."""

import shlex
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustssm import __version__
from robustssm.core.provenance import commit
from robustssm.records import write_json
from robustssm.sweep.job import Job, Outcome
from robustssm.sweep.plan import Plan

FOLDER = "sweeps"


class Record:
    """The file of one call: what was asked for, and what has become of each run so far."""

    def __init__(self, out: Path, plan: Plan, *, setting: dict[str, Any]):
        """Writes the file, in which every run waits.

        Args:
            out: Directory of the sweep.
            plan: What is to be done.
            setting: How: backend, jobs, threads, device.
        """
        now = datetime.now(UTC)
        self.path = _free(out / FOLDER, now.strftime("%Y%m%dT%H%M%SZ"))
        self._runs = {job.directory: _waiting(job) for job in plan.jobs}
        self._head = {
            "grids": [{"name": grid.name, "title": grid.title} for grid in plan.grids],
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "version": __version__,
            "commit": commit(),
            "host": socket.gethostname(),
            "started": now.isoformat(timespec="seconds"),
            **setting,
        }
        self._write("running")

    def note(self, outcome: Outcome) -> None:
        """Writes how a run ended."""
        result = outcome.result
        figures: dict[str, Any] = {}
        if result is not None:
            figures = {"clean": result["clean_accuracy"], "attacks": dict(result["attacks"])}
        self._runs[outcome.job.directory] |= figures | {
            "status": "failed" if result is None else "finished",
            "error": outcome.error,
            "attempts": outcome.attempts,
            "seconds": round(outcome.seconds, 1),
        }
        self._write("running")

    def close(self, *, complete: bool) -> None:
        """Writes that the call is over.

        Args:
            complete: Whether it came to its end, or was interrupted.
        """
        self._write("finished" if complete else "interrupted")

    def _write(self, status: str) -> None:
        ended = None if status == "running" else datetime.now(UTC).isoformat(timespec="seconds")
        runs: Sequence[dict[str, Any]] = list(self._runs.values())
        write_json(self.path, self._head | {"ended": ended, "status": status, "runs": runs})


def _waiting(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "recipe": job.recipe,
        "overrides": job.overrides,
        "seed": job.seed,
        "directory": str(job.directory),
        "status": "not finished",
    }


def _free(folder: Path, name: str) -> Path:
    """A name that no other call, perhaps of the same second, has taken."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / (f"{name}.json" if number == 0 else f"{name}-{number}.json")
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
