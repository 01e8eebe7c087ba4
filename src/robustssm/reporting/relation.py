"""Does the theory explain anything? Rank correlation of what probes found with robust accuracy."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean

from robustssm.records import Axis, ProbeResult, Quantity
from robustssm.reporting import names, probes, ranks
from robustssm.reporting.cells import Group
from robustssm.reporting.pairs import holm
from robustssm.reporting.runs import Run

LEAST = 5
"""Cells below which no correlation is taken."""
EVERYTHING = "all methods"
_FIXED = {"split": "test", "checkpoint": "best"}
_WORDS = 24  # places along an axis of words, beyond which it is averaged over too


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """One quantity against robust accuracy, over the cells of one scope."""

    quantity: str
    scope: str
    """`EVERYTHING`, or a training method within which cells are compared."""
    n: int
    """Cells. Seeds of a cell are averaged: they are no further evidence about other models."""
    rho: float
    """Spearman's rank correlation."""
    interval: tuple[float, float]
    p: float
    adjusted: float = 1.0
    """p by Holm, over all correlations taken together."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """All correlations over some cells, in the order of the probes."""

    correlations: tuple[Correlation, ...]
    attacks: tuple[str, ...]
    """Labels of the attacks over which the worst case is taken: those that all runs have."""
    cells: int
    runs: tuple[str, ...]
    unreliable: tuple[str, ...]
    """Names of runs left out as their accuracy must not be believed."""
    constant: tuple[str, ...]
    """Quantities that are the same for all cells, which correlate with nothing."""

    @property
    def quantities(self) -> tuple[str, ...]:
        """Those that were tested."""
        return tuple(dict.fromkeys(each.quantity for each in self.correlations))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Over which cells: all first."""
        return tuple(dict.fromkeys(each.scope for each in self.correlations))

    def of(self, quantity: str, scope: str) -> Correlation | None:
        """The one of a quantity in a scope, if it was taken."""
        found = (c for c in self.correlations if (c.quantity, c.scope) == (quantity, scope))
        return next(found, None)


def relation(groups: Sequence[Group], *, level: float = 0.95) -> Relation | None:
    """Correlates every scalar summary with robust accuracy, over all cells and within each method.

    Robust accuracy is that of the best checkpoint, right on the clean example and under every
    attack that all runs have in common. Both are means over the seeds of a cell. p-values are
    adjusted for all correlations together.

    Args:
        groups: Cells on the same data under the same threat.
        level: Confidence of the intervals, in (0, 1).

    Returns:
        The correlations, or None if fewer than `LEAST` cells have both probes and attacks.
    """
    probed = [
        [run for run in group.runs if run.probes and "best" in run.checkpoints] for group in groups
    ]
    believed = [[run for run in cell if run.verdict_on("best") != "unreliable"] for cell in probed]
    fit = [cell for cell in believed if cell]
    runs = [run for cell in fit for run in cell]
    attacks = _shared(runs)
    if len(fit) < LEAST or not attacks:
        return None
    accuracies = [round(mean(_accuracy(run, attacks) for run in cell), 12) for cell in fit]
    columns, constant = _columns(fit)
    found = []
    for scope, chosen in _scopes(fit):
        for name, column in columns.items():
            there = [at for at in chosen if column[at] is not None]
            x = [value for at in there if (value := column[at]) is not None]
            y = [accuracies[at] for at in there]
            rho = ranks.spearman(x, y) if len(there) >= LEAST else None
            if rho is not None:
                n = len(there)
                interval = ranks.interval(rho, n, level=level)
                p = ranks.p_value(x, y)
                found.append(
                    Correlation(quantity=name, scope=scope, n=n, rho=rho, interval=interval, p=p)
                )
    adjusted = holm([each.p for each in found])
    return Relation(
        correlations=tuple(
            dataclasses.replace(each, adjusted=p) for each, p in zip(found, adjusted, strict=True)
        ),
        attacks=attacks,
        cells=len(fit),
        runs=tuple(run.name for run in runs),
        unreliable=tuple(run.name for cell in probed for run in cell if run not in runs),
        constant=constant,
    )


def summaries(result: ProbeResult) -> dict[str, float]:
    """Every quantity as single numbers: of the best checkpoint, on test data, mean over layers.

    Axes of words (a component, a norm) and quantiles are kept apart, axes of numbers (layers,
    positions, frequencies, states) averaged over. What is nowhere, or not a number, is left out.
    """
    made = {}
    for quantity in result.quantities:
        kept = [axis for axis in quantity.axes if axis.name not in _FIXED and _apart(axis)]
        kept = [axis for axis in kept if axis.name != "layer"]
        if any(_FIXED[a.name] not in a.labels for a in quantity.axes if a.name in _FIXED):
            continue
        for labels in product(*(axis.labels for axis in kept)):
            places = dict(zip((axis.name for axis in kept), labels, strict=True))
            value = probes.average(probes.select(quantity, **_FIXED, **places))
            if value is not None and not math.isnan(value):
                made[_called(result, quantity, labels)] = value
    return made


def _called(result: ProbeResult, quantity: Quantity, labels: Sequence[str]) -> str:
    return ", ".join((f"{result.probe}: {quantity.name}", *labels))


def _apart(axis: Axis) -> bool:
    def number(label: str) -> bool:
        try:
            float(label)
        except ValueError:
            return False
        return True

    words = not all(number(label) for label in axis.labels)
    return axis.name == "quantile" or (words and len(axis.labels) <= _WORDS)


def _columns(
    cells: Sequence[Sequence[Run]],
) -> tuple[dict[str, tuple[float | None, ...]], tuple[str, ...]]:
    """Summary to its value for every cell; and which are constant. The same numbers count once."""
    rows = [_averaged(runs) for runs in cells]
    columns: dict[str, tuple[float | None, ...]] = {}
    constant = []
    seen: set[tuple[str | None, ...]] = set()
    for name in dict.fromkeys(name for row in rows for name in row):
        column = tuple(row.get(name) for row in rows)
        key = tuple(None if value is None else f"{value:.9g}" for value in column)
        there = {value for value in key if value is not None}
        if len(there) < 2:
            constant.append(name)
        elif key not in seen:
            seen.add(key)
            columns[name] = column
    return columns, tuple(constant)


def _averaged(runs: Sequence[Run]) -> Mapping[str, float]:
    """Summary to its mean over the runs that have it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        own: dict[str, float] = {}
        for result in run.probes.values():
            own = summaries(result) | own
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    made = {name: mean(several) for name, several in values.items()}
    return {name: value for name, value in made.items() if not math.isnan(value)}


def _shared(runs: Sequence[Run]) -> tuple[str, ...]:
    """Attacks that every run's best checkpoint was put to."""
    results = [run.checkpoints["best"].result for run in runs]
    first = results[0].survived if results else {}
    return tuple(k for k in first if all(k in result.survived for result in results))


def _accuracy(run: Run, attacks: Sequence[str]) -> float:
    result = run.checkpoints["best"].result
    rows = zip(result.clean, *(result.survived[label] for label in attacks), strict=True)
    return sum(all(row) for row in rows) / result.n


def _scopes(cells: Sequence[Sequence[Run]]) -> Iterator[tuple[str, list[int]]]:
    """All cells, then those of each method; if there is only one method, once."""
    yield EVERYTHING, list(range(len(cells)))
    having = [runs[0].method for runs in cells]
    methods = sorted(set(having), key=lambda m: names.rank(names.METHODS, m))
    for method in methods if len(methods) > 1 else ():
        yield method, [at for at, own in enumerate(having) if own == method]
