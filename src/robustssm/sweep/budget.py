"""One budget for every cell of a sweep: each trains as many epochs as it pays for."""

from dataclasses import replace
from pathlib import Path

from robustssm.core.config import override
from robustssm.core.errors import Inapplicable
from robustssm.experiment.budget import budgeted, price
from robustssm.recipes import recipe
from robustssm.sweep.job import Job
from robustssm.sweep.plan import Plan


def with_budget(
    plan: Plan,
    *,
    passes: float | None = None,
    like: str | None = None,
    data_dir: Path | None = None,
) -> Plan:
    """The same runs with the epochs that one budget pays for, under names that say so.

    The epochs become an ordinary override of each cell, so that its record re-makes it.

    Args:
        plan: What would run without a budget.
        passes: Forward/backward equivalents per training example (see `experiment.budget`).
        like: Name of a recipe whose cost is the budget, instead.
        data_dir: Where data files are looked for, should a cost depend on the number of classes.

    Returns:
        The plan as it is if there is no budget; else with a problem for each cell that has none.
    """
    if passes is None and like is None:
        return plan
    if passes is not None and like is not None:
        both = "A sweep must have one budget; got --budget and --equal-budget. Keep one."
        return replace(plan, problems=(*plan.problems, both))
    try:
        budget = price(recipe(like), data_dir=data_dir).total if like is not None else passes
    except (ValueError, OSError, Inapplicable) as error:
        return replace(plan, problems=(*plan.problems, *str(error).splitlines()))
    assert budget is not None
    problems: list[str] = []
    cells: dict[str, Job] = {}
    for job in plan.jobs:
        if job.name not in cells:
            try:
                cells[job.name] = _paid(job, budget, data_dir)
            except (ValueError, OSError, Inapplicable) as error:
                problems += [f"{job.name}: {line}" for line in str(error).splitlines()]
                cells[job.name] = job
    jobs = tuple(_like(cells[job.name], job) for job in plan.jobs)
    return replace(plan, jobs=jobs, problems=(*plan.problems, *dict.fromkeys(problems)))


def _paid(job: Job, budget: float, data_dir: Path | None) -> Job:
    if "epochs" in job.changes:
        raise ValueError(
            "One thing must decide the number of epochs; got a budget and "
            f"epochs={job.changes['epochs']}. Drop one."
        )
    epochs = budgeted(override(recipe(job.recipe), job.changes), budget, data_dir=data_dir)
    changes = {**job.changes, "epochs": str(epochs)}
    return replace(job, name=f"{job.name}+budget={budget:g}", changes=changes)


def _like(cell: Job, job: Job) -> Job:
    """The cell with the seed of `job`, in the directory that its own name asks for."""
    root = job.directory.parent.parent
    return replace(cell, seed=job.seed, directory=root / cell.name / job.directory.name)
