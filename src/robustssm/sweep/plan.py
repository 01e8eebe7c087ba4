"""What a sweep is asked to do: grids, seeds and changes, turned into runs with directories."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.core.errors import unknown, violation
from robustssm.recipes import grids, names
from robustssm.recipes.grids import Entry, Grid
from robustssm.sweep.grid_file import is_pattern, matching, read_grid
from robustssm.sweep.job import Job


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a sweep, in their order, and what is wrong with the request."""

    grids: tuple[Grid, ...]
    jobs: tuple[Job, ...]
    problems: tuple[str, ...] = ()
    """Sentences; a plan with any must not be begun."""


def lay_out(
    asked: Iterable[str | Grid],
    *,
    seeds: Sequence[int],
    out: Path,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Finds the grids and lays out their runs: every cell with the first seed, then the next.

    A cell that several grids share is run once.

    Args:
        asked: Grids, or names: of a shipped grid, of a recipe, with wildcards, of a TOML file.
        seeds: Each cell is run with each.
        out: A run goes to `out`/CELL/seed_S.
        overrides: Dotted overrides of every run.
    """
    overrides = overrides or {}
    problems = _wrong_request(seeds, overrides)
    found: list[Grid] = []
    for each in asked:
        try:
            found.append(each if isinstance(each, Grid) else find(each))
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
    cells: dict[str, Job] = {}
    entries = [(grid.name, entry) for grid in found for entry in grid.entries]
    problems += [line for grid in found for line in _varied(grid, overrides)]
    for name, entry in entries:
        problems += [
            f"{entry.name} of grid {name} must leave the seed to --seeds; got seed={value}."
            for key, value in entry.overrides.items()
            if key == "seed"
        ]
        changes = {**entry.overrides, **overrides}
        cell = Job(name=entry.name, recipe=entry.recipe, changes=changes, seed=0, directory=out)
        if cells.setdefault(entry.name, cell) != cell:
            problems.append(
                f"Cells with one name must be alike; {entry.name} of grid {name} has other "
                f"settings than an earlier one: {_contrast(cells[entry.name], cell)}. Give them "
                "labels, or run the grids into different --out."
            )
    jobs = tuple(
        Job(
            name=cell.name,
            recipe=cell.recipe,
            changes=cell.changes,
            seed=seed,
            directory=out / cell.name / f"seed_{seed}",
        )
        for seed in dict.fromkeys(seeds)
        for cell in cells.values()
    )
    return Plan(grids=tuple(found), jobs=jobs, problems=tuple(dict.fromkeys(problems)))


def find(name: str) -> Grid:
    """The grid called `name`, or one made of the recipes that it names.

    Args:
        name: Of a shipped grid, a recipe, "module:function", a pattern such as "digits.s4*_pgd", or
            a file that ends in .toml.

    Raises:
        ValueError: If there is none, or the file is wrong.
        FileNotFoundError: If there is no such file.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"A grid's file must be there; there is no {name}.")
        return read_grid(Path(name))
    if name in grids.grids():
        return grids.grid(name)
    recipes = matching(name)
    if not is_pattern(name) and ":" not in name and name not in names():
        raise ValueError(unknown("grid or recipe", name, (*grids.grids(), *names())))
    return Grid(name=name, title=name, entries=tuple(Entry(recipe=each) for each in recipes))


def _wrong_request(seeds: Sequence[int], overrides: Mapping[str, str]) -> list[str]:
    problems = []
    if not seeds or min(seeds) < 0:
        must = "be one or more whole numbers from 0 on"
        problems.append(violation("`seeds`", must, list(seeds), "Try --seeds 3."))
    if "seed" in overrides:
        problems.append(
            f"Seeds must be given in one place; got --set seed={overrides['seed']}. Use --seeds "
            f"{overrides['seed']}, for this seed alone."
        )
    return problems


def _varied(grid: Grid, overrides: Mapping[str, str]) -> list[str]:
    """Overrides that would make cells equal which the grid tells apart."""
    values: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for entry in grid.entries:
        for key in overrides:
            values[key, entry.recipe].add(entry.overrides.get(key))
    keys = dict.fromkeys(key for (key, _), found in values.items() if len(found) > 1)
    return [
        f"`{key}` must be left to grid {grid.name}, which varies it; got "
        f"--set {key}={overrides[key]}. Drop it, or change the grid."
        for key in keys
    ]


def _contrast(first: Job, second: Job) -> str:
    if first.recipe != second.recipe:
        return f"recipe {first.recipe} and {second.recipe}"
    keys = {**first.changes, **second.changes}
    return "; ".join(
        f"{key}: {first.changes.get(key, 'not set')} and {second.changes.get(key, 'not set')}"
        for key in keys
        if first.changes.get(key) != second.changes.get(key)
    )
