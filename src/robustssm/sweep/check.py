"""Everything about a sweep that can be known before its first run begins."""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustssm.core.config import override, to_dict
from robustssm.core.errors import CorruptFile, Inapplicable
from robustssm.core.lock import in_use
from robustssm.core.placement import Placement, Precision
from robustssm.data.base import Splits
from robustssm.experiment import Experiment, build_model, read_data
from robustssm.experiment.rundir import completed, differences, read_recipe
from robustssm.recipes import recipe
from robustssm.records import read_json
from robustssm.sweep.job import Job, Setup

_PATIENCE = 12.0
"""Seconds to wait for directories in use: workers of a killed sweep need some to notice it."""
_WRONG = (ValueError, OSError, Inapplicable)


@dataclasses.dataclass
class Findings:
    """What a check found."""

    problems: list[str]
    """Sentences, each of which names the runs that it is about."""
    finished: dict[Path, dict[str, Any]]
    """Directory to evaluation.json of the runs that need not be run again."""


def check(jobs: Sequence[Job], setup: Setup, *, here: bool = True) -> Findings:
    """Makes all settings, reads each data set once, builds each model, looks at each directory.

    Args:
        jobs: The runs.
        setup: How they are to be carried out.
        here: Whether they run on this machine, so that its devices count.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    experiments: dict[str, Experiment] = {}
    for job in _one_per_cell(jobs):
        try:
            base = recipe(job.recipe)
        except _WRONG as error:
            problems[str(error)].append(job.name)
            continue
        made, wrong = _changed(base, job.changes)
        for message in wrong:
            problems[message].append(job.name)
        if not wrong:
            experiments[job.name] = made
    finished: dict[Path, dict[str, Any]] = {}
    busy: list[Job] = []
    for job in jobs:
        if job.name not in experiments:
            continue
        experiment = dataclasses.replace(experiments[job.name], seed=job.seed)
        try:
            record = _there(job.directory, experiment)
        except _WRONG as error:
            problems[str(error)].append(job.title)
            continue
        if record is not None:
            finished[job.directory] = record
        elif in_use(job.directory):
            busy.append(job)
    for job in _still_busy(busy):
        message = f"{job.directory} must be free; another process works there. Wait for it."
        problems[message].append(job.title)
    open_ = {job.name for job in jobs if job.directory not in finished}
    unfinished = {name: value for name, value in experiments.items() if name in open_}
    if unfinished or problems:
        _try_parts(unfinished, setup, problems, here=here)
    lines = [f"{_several(about)}: {message}" for message, about in problems.items()]
    return Findings(problems=lines, finished=finished)


def refuse(problems: Sequence[str]) -> None:
    """Raises one error that lists all problems, if there are any.

    Raises:
        ValueError: With the list.
    """
    if problems:
        count = "1 thing" if len(problems) == 1 else f"{len(problems)} things"
        listed = "".join("\n  - " + problem.replace("\n", "\n    ") for problem in problems)
        raise ValueError(
            f"Everything about a sweep must be right before its first run begins; got {count} to "
            f"mend:{listed}\nNothing was started. Mend them and give the command again."
        )


def _one_per_cell(jobs: Iterable[Job]) -> Iterable[Job]:
    return {job.name: job for job in jobs}.values()


def _changed(base: Experiment, changes: Mapping[str, str]) -> tuple[Experiment, list[str]]:
    """The recipe with its changes, and what is wrong with each that cannot be made."""
    try:
        return override(base, changes), []
    except ValueError:
        pass  # it names the first; we want all
    waiting, refused = dict(changes), {}
    while waiting and len(refused) < len(waiting):
        refused = {}
        for key, text in waiting.items():
            try:
                base = override(base, {key: text})
            except ValueError as error:
                refused[key] = str(error)
        waiting = {key: waiting[key] for key in refused}
    return base, [
        message if f"`{key}`" in message else f"--set {key}={waiting[key]}: {message}"
        for key, message in refused.items()
    ]


def _there(directory: Path, experiment: Experiment) -> dict[str, Any] | None:
    """The result of a run that is finished; None if there is none yet.

    Raises:
        ValueError: If the directory holds another run, or a damaged one.
    """
    evaluation = directory / "evaluation.json"
    begun = (directory / "checkpoints").exists() or evaluation.exists()
    if not begun or not (directory / "recipe.json").exists():
        return None
    settings = to_dict(experiment)
    recorded = read_recipe(directory)["experiment"]
    changed = differences(completed(recorded, settings), settings)
    if changed:
        raise ValueError(
            f"{directory} must be free or hold this run; it holds one that differs in "
            f"{'; '.join(changed[:5])}{'; ...' if len(changed) > 5 else ''}. Choose another --out."
        )
    if not evaluation.exists() or not (directory / "provenance.json").exists():
        return None
    record = read_json(evaluation)
    try:
        whole = _is_whole(record, experiment)
    except (KeyError, TypeError, AttributeError):
        raise CorruptFile(
            f"{evaluation} must be the result of a run; it is something else. Remove it and give "
            "the command again."
        ) from None
    spent = read_json(directory / "provenance.json").get("seconds")
    return record if whole and spent is not None else None


def _is_whole(record: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether a result is the recipe's own evaluation and not a later, smaller or stopped one."""
    used, there = record["test_examples"]["used"], record["test_examples"]["all"]
    asked = there if experiment.evaluation_examples is None else experiment.evaluation_examples
    labels = {attack.label for attack in experiment.attacks}
    return (
        set(record["attacks"]) == labels
        and used == min(asked, there)
        and record.get("planned") is None
        and set(record["checkpoints"]) == {"best", "last"}
    )


def _still_busy(jobs: list[Job]) -> list[Job]:
    """Those in use now, and for as long as workers of a killed sweep may need to end."""
    ends = time.monotonic() + _PATIENCE
    while jobs and time.monotonic() < ends:
        time.sleep(0.2)
        jobs = [job for job in jobs if in_use(job.directory)]
    return jobs


def _try_parts(
    experiments: Mapping[str, Experiment],
    setup: Setup,
    problems: dict[str, list[str]],
    *,
    here: bool,
) -> None:
    """Tries the device, each data set once, and the model of each cell on its data."""
    if here:
        precisions: list[Precision] = [each.precision for each in experiments.values()]
        different: set[Precision] = {*precisions} if precisions else {"32-true"}
        for precision in sorted(different):
            try:
                Placement(device=setup.device, precision=precision)
            except Exception as error:  # what Fabric raises for hardware that does not fit
                problems[str(error)].append("--device")
    groups: dict[str, list[str]] = defaultdict(list)
    for name, each in experiments.items():
        groups[json.dumps([to_dict(each.dataset), to_dict(each.threat)["bounds"]])].append(name)
    for names in groups.values():
        try:
            splits = read_data(experiments[names[0]], setup.data_dir)
        except _WRONG as error:
            problems[str(error)] += names
            continue
        for name in names:
            message = _model_problem(experiments[name], splits)
            if message:
                problems[message].append(name)


def _model_problem(experiment: Experiment, splits: Splits) -> str:
    try:
        build_model(experiment, splits)
    except _WRONG as error:
        return str(error)
    return ""


def _several(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else 4]) + more
