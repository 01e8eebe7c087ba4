"""What claims are tested on: the cells of runs, or of the printed tables, asked in one way."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from robustssm.records import Flags
from robustssm.reporting import cells, names, overfitting, probes, published
from robustssm.reporting.cells import Group
from robustssm.reporting.feature_figures import PROBE
from robustssm.reporting.runs import Run
from robustssm.reporting.seeds import Part
from robustssm.reporting.theory_figures import BOUNDS, GROWTH

Term = tuple[float, str, str, str, str]
"""A factor, a structure, a method, a metric and a checkpoint."""
STANDARD = "Standard"
FIXED = ("S4", "S4D", "DSS", "S5", "LRU")
"""Structures whose recurrence does not depend on the input."""
BASELINES = ("EMA", "Attention", "Transformer", "CNN")
"""No state space models, or parts of one: for comparison."""
_AA = "autoattack"


class Source(ABC):
    """Cells by structure and method, each a value per seed."""

    name: str
    certain: bool = False
    """Whether values are no samples over seeds."""

    @abstractmethod
    def cells(self) -> tuple[tuple[str, str], ...]:
        """(structure, method) of every cell."""

    @abstractmethod
    def values(self, structure: str, method: str, metric: str, checkpoint: str) -> dict[int, float]:
        """Seed to a number in percent, or of a probe in its unit; empty where nothing is known.

        Args:
            structure: With its scaling.
            method: Display name.
            metric: "clean", "pgd10", "aa", "worst", "watched", "amplification",
                "false.QUANTITY" or "probe.COMPONENT.QUANTITY".
            checkpoint: "best" or "last".
        """

    def part(
        self, label: str, terms: Sequence[Term], *, beyond: float = 0.0, sign: int = 1
    ) -> Iterable[Part]:
        """The sum of terms over the seeds that all of them have; nothing if there are none."""
        found = [(factor, self.values(*where)) for factor, *where in terms]
        shared = sorted(set.intersection(*(set(values) for _, values in found)))
        if shared:
            sums = tuple(math.fsum(f * values[seed] for f, values in found) for seed in shared)
            yield Part(label=label, values=sums, beyond=beyond, sign=sign, certain=self.certain)

    def plain(self) -> list[str]:
        """Structures without adaptive scaling."""
        return list(dict.fromkeys(s for s, _ in self.cells() if " + " not in s and "(" not in s))

    def methods(self, *, robust: bool = True) -> list[str]:
        """Training methods, in order; only those that train on perturbed inputs if `robust`."""
        found = sorted({m for _, m in self.cells()}, key=lambda m: names.rank(names.METHODS, m))
        return [m for m in found if not (robust and m == STANDARD)]

    def scaled(self) -> list[tuple[str, str]]:
        """Structures with adaptive scaling, and what they are without."""
        there = dict.fromkeys(s for s, _ in self.cells() if " + Ad" in s and "(" not in s)
        return [(s, s.partition(" + ")[0]) for s in there]


class Printed(Source):
    """The published tables of one data set."""

    certain = True

    def __init__(self, dataset: str) -> None:
        """Takes the rows of a data set.

        Args:
            dataset: "MNIST" or "CIFAR-10".
        """
        self.name = dataset
        self._rows = {(r.structure, r.method): r for r in published.table() if r.dataset == dataset}

    def cells(self) -> tuple[tuple[str, str], ...]:
        """(structure, method) of every printed row."""
        return tuple(self._rows)

    def values(self, structure: str, method: str, metric: str, checkpoint: str) -> dict[int, float]:
        """The printed number, as that of seed 0."""
        keys = {"clean": "clean", "pgd10": "pgd10", "aa": "aa", "worst": "aa"}
        row = self._rows.get((structure, method))
        if metric == "watched":  # what training watches: adversarial accuracy, of any example
            both = [self.values(structure, method, m, checkpoint) for m in ("pgd10", "clean")]
            return {0: both[0][0] - both[1][0]} if all(both) else {}
        value = row.numbers.get((keys[metric], checkpoint)) if row and metric in keys else None
        return {} if value is None else {0: value}


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Cells under one threat whose recipes are of one tier: one base variant per cell."""

    section: tuple[str, str]
    tier: str
    base: tuple[Group, ...]
    variants: tuple[Group, ...] = ()
    """Cells of the same structure and method with other settings."""


def tiers(groups: Sequence[Group]) -> tuple[Tier, ...]:
    """Sorts cells by section and tier.

    Of several variants of a cell the base is the one with the fewest changed settings, and of
    those the one with the most seeds.
    """
    made = []
    key = _section_and_tier
    for (section, tier), members in groupby(sorted(groups, key=key), key=key):
        chosen: dict[tuple[str, str], list[Group]] = {}
        for group in members:
            chosen.setdefault((group.runs[0].structure, group.method), []).append(group)
        best = {where: min(found, key=changes) for where, found in chosen.items()}
        made.append(
            Tier(
                section=section,
                tier=tier,
                base=tuple(best.values()),
                variants=tuple(g for w, found in chosen.items() for g in found if g != best[w]),
            )
        )
    return tuple(made)


def _section_and_tier(group: Group) -> tuple[tuple[str, str], str]:
    return group.section, group.tier


def changes(group: Group) -> tuple[int, int, str]:
    """Small for what stands for a recipe: few changed settings, then many seeds.

    Args:
        group: A cell.
    """
    changed = min(len(set(run.overrides) - {"seed"}) for run in group.runs)
    return changed, -len(group.runs), group.structure


def cell(group: Group) -> str:
    """The name of a cell's recipe without its tier.

    Args:
        group: A cell.
    """
    return group.runs[0].recipe.rpartition(".")[2]


def by_recipe(tier: Tier) -> dict[str, Group]:
    """Recipe without its tier to the cell that stands for it: the one with fewest changes.

    A change may be of the structure, and make a row of its own.

    Args:
        tier: Cells under one threat.
    """
    found: dict[str, list[Group]] = {}
    for group in (*tier.base, *tier.variants):
        found.setdefault(cell(group), []).append(group)
    return {name: min(members, key=changes) for name, members in found.items()}


def controls(structures: Iterable[str]) -> set[str]:
    """Those that no claim is about: baselines, and controls of structures that are there too.

    Args:
        structures: Display names, "S4 + AdS-ReLU (frozen)".
    """
    there, found = set(structures), set()
    for structure in there:
        plain = structure.removeprefix("Bidirectional ").partition(" (")[0]
        plain = plain.replace("+ AdSS-", "+ AdS-").replace("+ shift-", "+ AdS-")
        plain = plain.removesuffix(" + GLU")
        if structure in BASELINES or (plain != structure and plain in there):
            found.add(structure)
    return found


class Measured(Source):
    """Runs of one section and tier, without those whose evaluation is unreliable."""

    def __init__(self, tier: Tier) -> None:
        """Takes the base cells of a tier, without controls.

        Args:
            tier: Cells that differ in structure, method and seed.
        """
        self.name = tier.tier or tier.section[0]
        self.section = tier.section
        others = controls(g.runs[0].structure for g in tier.base)
        kept = [g for g in tier.base if g.runs[0].structure not in others]
        self._groups = {(g.runs[0].structure, g.method): g for g in kept}
        every = [run for g in kept for run in g.runs]
        rows = [c.result.survived for run in every for c in run.checkpoints.values()]
        self.attacks = tuple(k for k in rows[0] if all(k in row for row in rows)) if rows else ()
        self.runs = len(every)
        self.unreliable = tuple(run.name for run in every if run.verdict == "unreliable")

    def cells(self) -> tuple[tuple[str, str], ...]:
        """(structure, method) of every cell."""
        return tuple(self._groups)

    def group(self, structure: str, method: str) -> Group | None:
        """The cell, if there is one."""
        return self._groups.get((structure, method))

    def values(self, structure: str, method: str, metric: str, checkpoint: str) -> dict[int, float]:
        """Seed to a number, of runs whose evaluation can be believed."""
        group = self._groups.get((structure, method))
        found: dict[int, float] = {}
        for run in group.runs if group else ():
            if checkpoint not in run.checkpoints or run.verdict_on(checkpoint) == "unreliable":
                continue
            value = self._value(run, metric, checkpoint)
            if value is not None:
                found[run.seed] = value
        return found

    def _value(self, run: Run, metric: str, checkpoint: str) -> float | None:
        if metric.startswith("probe."):
            return shift(run, *metric.split(".")[1:]) if checkpoint == "best" else None
        if metric.startswith("false."):
            return _worst_share(run, metric.partition(".")[2])
        if metric == "amplification":
            return _amplification(run) if checkpoint == "best" else None
        if metric == "watched":
            return _watched(run, checkpoint)
        flags = _flags(run, metric, checkpoint, self.attacks)
        return None if flags is None else 100 * sum(flags) / len(flags)


def shift(run: Run, component: str, quantity: str) -> float | None:
    """Relative change of a shift across a component on test data, mean over layers, in percent."""
    found = probes.quantity(run, PROBE, quantity)
    if found is None or component not in probes.labels(found, "component"):
        return None
    places = {"split": "test", "component": component}
    there = probes.finite(probes.select(found, **places))
    return 100 * sum(there) / len(there) if there else None


def _worst_share(run: Run, quantity: str) -> float | None:
    """Largest over layers, in percent."""
    found = probes.quantity(run, BOUNDS, quantity)
    there = probes.finite(found.values) if found else []
    return 100 * max(there) if there else None


def _amplification(run: Run) -> float | None:
    """Natural logarithm of the amplification of a perturbation, mean over layers."""
    found = probes.quantity(run, GROWTH, "amplification")
    there = [v for v in probes.finite(found.values) if v > 0] if found else []
    return sum(map(math.log, there)) / len(there) if there else None


def autoattack(run: Run, checkpoint: str) -> str | None:
    """The label under which a checkpoint was put to AutoAttack, adapted or not; None if not."""
    labels = run.checkpoints[checkpoint].result.survived
    return next((k for k in labels if k.startswith(_AA) and "rand" not in k), None)


def _flags(run: Run, metric: str, checkpoint: str, attacks: Sequence[str]) -> Flags | None:
    state = run.checkpoints[checkpoint]
    if metric == "worst":
        if not attacks:
            return None
        rows = zip(state.result.clean, *(state.result.survived[k] for k in attacks), strict=True)
        return tuple(all(row) for row in rows)
    label = {"clean": cells.CLEAN, "pgd10": "pgd-10"}.get(metric) or autoattack(run, checkpoint)
    return cells.flags(state, label) if label else None


def _watched(run: Run, checkpoint: str) -> float | None:
    """Adversarial minus clean accuracy on the test examples that training watched, in points."""
    epoch = run.checkpoints[checkpoint].epoch
    attacked = overfitting.watched(run, "test", epoch)
    clean = next((r.values.get("test_accuracy") for r in run.epochs if r.epoch == epoch), None)
    return None if attacked is None or clean is None else 100 * (attacked - clean)
