"""The work of one run, carried out by one process or by each of several."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustssm.core.config import from_dict, to_dict
from robustssm.core.errors import NonFiniteLoss
from robustssm.core.placement import Placement, cpu_threads
from robustssm.core.provenance import collect
from robustssm.data.base import Splits
from robustssm.experiment.assess import Options, assess
from robustssm.experiment.budget import on_record
from robustssm.experiment.display import Display
from robustssm.experiment.fit import Fit
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, read_data, sensible_threads


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run is asked to do; see `run` for the fields."""

    experiment: Experiment
    directory: Path
    name: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    data_dir: Path | None = None
    threads: int | None = None
    save_seconds: float = 120.0

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries and strings, for another process."""
        paths = {"directory": str(self.directory), "data_dir": self.data_dir and str(self.data_dir)}
        plain = {k: getattr(self, k) for k in ("name", "resume", "threads", "save_seconds")}
        return {
            "experiment": to_dict(self.experiment),
            "overrides": dict(self.overrides),
            **plain,
            **paths,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Job":
        """The inverse of `to_plain`."""
        data_dir = plain["data_dir"]
        return cls(
            **{k: plain[k] for k in ("name", "overrides", "resume", "threads", "save_seconds")},
            experiment=from_dict(Experiment, plain["experiment"]),
            directory=Path(plain["directory"]),
            data_dir=None if data_dir is None else Path(data_dir),
        )


def carry_out(
    job: Job, placement: Placement, display: Display, *, on_this_host: int = 1
) -> dict[str, Any]:
    """Trains and evaluates.

    Of several processes all train; the first one alone writes, shows and evaluates, and the others
    end with the training.

    Args:
        job: What to do, the same in all processes.
        placement: Of this process.
        display: Shows progress.
        on_this_host: How many processes share the processor, if the run is on one.

    Returns:
        The contents of evaluation.json; empty in a process that is not the first.

    Raises:
        As `run`.
    """
    began = time.monotonic()
    splits = read_data(job.experiment, job.data_dir)
    threads = job.threads or max(1, sensible_threads(job.experiment, splits) // on_this_host)
    place = RunDirectory(job.directory)
    with cpu_threads(threads):
        if placement.rank:
            placement.told(None)  # from here on the directory is the first one's
            _fit(job, place, splits, placement, display)
            return {}
        with place.locked():
            record = _first(job, place, splits, placement, display)
            place.finish(time.monotonic() - began)
    return record


def _first(
    job: Job, place: RunDirectory, splits: Splits, placement: Placement, display: Display
) -> dict[str, Any]:
    """The work of the process that holds the directory."""
    experiment = job.experiment
    recipe = {
        "recipe": job.name,
        "overrides": dict(job.overrides),
        "experiment": to_dict(experiment),
        "data": dict(splits.origin),
        "cost": on_record(experiment, num_classes=splits.num_classes),
    }
    provenance = collect(seed=experiment.seed, device=placement.describe())
    place.begin(recipe, provenance, resume=job.resume)
    placement.told(None)
    _fit(job, place, splits, placement, display)
    return assess(
        experiment,
        place,
        splits,
        placement=placement,
        display=display,
        provenance=provenance,
        options=Options(resume=None if job.resume else False),
    )


def _fit(
    job: Job, place: RunDirectory, splits: Splits, placement: Placement, display: Display
) -> None:
    try:
        Fit(job.experiment, place, splits, placement, display, job.save_seconds)()
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"{error} The last good checkpoint is {place.checkpoint('last')}. Lower the "
            "learning rate (--set optimizer.lr=...) and train in a new directory."
        ) from None
