"""Which runs of two directories belong together: one of each side, with equal recipe and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.reporting import cells
from robustssm.reporting.load import load
from robustssm.reporting.runs import Run


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Runs of two directories that belong together, and those without a partner."""

    pairs: tuple[tuple[Run, Run], ...]
    alone: tuple[str, ...] = ()
    """Names, with "A: " or "B: " before them."""


def read_runs(path: Path) -> tuple[Run, ...]:
    """The finished runs at or below a path.

    Args:
        path: A run directory, or one that holds runs at any depth.

    Raises:
        ValueError: If there is none, with the reason.
    """
    return load([path]).finished


def match(first: Sequence[Run], second: Sequence[Run]) -> Matched:
    """Pairs runs: one with one; else by seed, where each side is one setting; else by recipe too.

    Args:
        first: Finished runs of A.
        second: Finished runs of B.

    Raises:
        ValueError: If no two belong together, or a run has several possible partners.
    """
    if len(first) == len(second) == 1:
        return Matched(pairs=((first[0], second[0]),))
    single = all(len(cells.groups(side)) == 1 for side in (first, second))
    sides = [_by_key(side, which, single) for side, which in ((first, "A"), (second, "B"))]
    keys = sorted(sides[0].keys() & sides[1].keys())
    if not keys:
        said = [", ".join(f"{recipe or '-'} seed {s}" for recipe, s in side) for side in sides]
        raise ValueError(
            "Runs are paired by recipe and seed, or by seed where A and B hold one recipe each; "
            f"A has {said[0]}, B has {said[1]}. Name two runs, or directories with equal seeds."
        )
    alone = [
        f"{which}: {run.name}"
        for which, side, other in (("A", *sides), ("B", *sides[::-1]))
        for key, run in side.items()
        if key not in other
    ]
    return Matched(pairs=tuple((sides[0][k], sides[1][k]) for k in keys), alone=tuple(alone))


def by_recipe(pairs: Sequence[tuple[Run, Run]]) -> tuple[tuple[tuple[Run, Run], ...], ...]:
    """Pairs sorted into those of the same two recipes, whose differences may be averaged.

    Args:
        pairs: As `match` makes them.
    """
    found: dict[tuple[str, str], list[tuple[Run, Run]]] = {}
    for first, second in pairs:
        found.setdefault((first.recipe, second.recipe), []).append((first, second))
    return tuple(tuple(members) for members in found.values())


def _by_key(runs: Sequence[Run], which: str, single: bool) -> dict[tuple[str, int], Run]:
    found: dict[tuple[str, int], Run] = {}
    for run in runs:
        key = ("" if single else run.recipe, run.seed)
        if key in found:
            raise ValueError(
                f"Runs must have one partner each; {which} has two of recipe {run.recipe} with "
                f"seed {run.seed}: {found[key].name} and {run.name}. Name single runs, or "
                "directories without repetitions."
            )
        found[key] = run
    return found
