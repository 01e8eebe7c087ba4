"""Which runs are one cell of a table, and what the cell says: accuracies with their uncertainty."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from robustssm.records import Flags, wilson
from robustssm.reporting import names, variants, verdicts
from robustssm.reporting.base import MISSING, Cell
from robustssm.reporting.intervals import of_mean
from robustssm.reporting.pairs import mcnemar, paired
from robustssm.reporting.runs import Checkpoint, Run

CLEAN, WORST = "clean", "worst case"
MINUS = "\N{MINUS SIGN}"
_OWN = ("model", "objective", *variants.IDLE)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone, one per seed, and the cell they make."""

    section: tuple[str, str]
    """Data set and threat: only runs under the same threat stand side by side."""
    structure: str
    """The row: structure, with the settings that tell variants apart."""
    method: str
    runs: tuple[Run, ...]
    repeats: tuple[str, ...] = ()
    """Names of runs that repeat a seed and are not counted."""

    @property
    def tier(self) -> str:
        """The tier of its recipes: "digits_paper" of "digits_paper.s4_trades"."""
        return tier(self.runs[0])


def tier(run: Run) -> str:
    """What stands before the cell in the name of a recipe; empty for recipes of one's own."""
    return "" if ":" in run.recipe else run.recipe.rpartition(".")[0]


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Sorts runs into cells, in the order of the table: tiers of recipes one after another.

    Runs with the same structure and method but of another tier of recipes, or with other settings,
    are never averaged: they get rows of their own, named by the tier, if there are several, and by
    the settings in which they differ.
    """
    places: dict[tuple[tuple[str, str], str, str, str], list[Run]] = {}
    tiers: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        section = (run.dataset, names.threat(run.threat))
        tiers.setdefault(section, set()).update({tier(run)} - {""})
        places.setdefault((section, run.structure, run.method, tier(run)), []).append(run)
    made = []
    for (section, structure, method, own), members in places.items():
        for settings, same in variants.variants(members):
            words = (own if len(tiers[section]) > 1 else "", settings)
            variant = ", ".join(word for word in words if word)
            counted, repeats = variants.one_per_seed(same)
            row = f"{structure} ({variant})" if variant else structure
            made.append(
                Group(section=section, structure=row, method=method, runs=counted, repeats=repeats)
            )
    return tuple(
        sorted(
            made,
            key=lambda g: (
                names.rank(names.DATASETS, g.section[0]),
                g.section[1],
                g.tier,
                names.rank(names.STRUCTURES, g.structure),
                names.rank(names.METHODS, g.method),
            ),
        )
    )


def further_differences(members: Sequence[Group]) -> tuple[str, ...]:
    """Dotted settings, outside model, objective and seed, that are not the same in all cells.

    Args:
        members: Cells that stand beside each other.
    """
    everything = [
        {key: value for key, value in variants.stated(run.experiment).items() if key not in _OWN}
        for group in members
        for run in group.runs
    ]
    return variants.telling([dict(variants.leaves(settings)) for settings in everything])


def leaves(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names of settings with their values as text, without those that are null."""
    return dict(variants.leaves(variants.stated(dict(settings))))


def flags(checkpoint: Checkpoint, key: str) -> Flags | None:
    """The flags behind a number, or None if it was not measured (no attack: no worst case).

    Args:
        checkpoint: An evaluated checkpoint.
        key: `CLEAN`, `WORST` or the label of an attack.
    """
    result = checkpoint.result
    if key == WORST:
        return result.robust if result.survived else None
    return result.clean if key == CLEAN else result.survived.get(key)


def accuracy(
    runs: Sequence[Run], checkpoint: str, key: str, *, level: float, marks: Mapping[str, str]
) -> Cell:
    """Accuracy in percent, with its interval: Wilson's for one run, Student's over several seeds.

    Args:
        runs: Runs that differ in their seed alone.
        checkpoint: "best" or "last".
        key: `CLEAN`, `WORST` or the label of an attack.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
    """
    rows = [
        f
        for r in runs
        if checkpoint in r.checkpoints
        if (f := flags(r.checkpoints[checkpoint], key))
    ]
    return share(rows, level=level, marks=marks) if rows else MISSING


def share(rows: Sequence[Flags], *, level: float, marks: Mapping[str, str]) -> Cell:
    """Percentage of examples that hold, with its interval: over examples, or over seeds.

    Args:
        rows: One or more rows of flags.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
    """
    value, (low, high) = centre(rows, level=level)
    details = (f"[{low:.1f}, {high:.1f}]",)
    if len(rows) > 1:
        details += spread([100 * sum(row) / len(row) for row in rows])
    return _cell(f"{value:.1f}", details, marks)


def centre(rows: Sequence[Flags], *, level: float) -> tuple[float, tuple[float, float]]:
    """Mean in percent and its interval: Wilson's for one row, Student's over several.

    Args:
        rows: One or more rows of flags.
        level: Confidence of the interval, in (0, 1).
    """
    values = [100 * sum(row) / len(row) for row in rows]
    if len(rows) == 1:
        low, high = wilson(sum(rows[0]), len(rows[0]), level=level)
        return values[0], (100 * low, 100 * high)
    low, high = of_mean(values, level=level)
    return mean(values), (max(0.0, low), min(100.0, high))


def spread(values: Sequence[float]) -> tuple[str, ...]:
    """Standard deviation and number of seeds, in small print."""
    return f"sd {stdev(values):.1f}", f"{len(values)} seeds"


def difference(
    runs: Sequence[Run],
    key: str,
    *,
    level: float,
    marks: Mapping[str, str],
    tested: bool = False,
) -> Cell:
    """Accuracy of "best" minus that of "last", in percentage points, on the same examples.

    Args:
        runs: Runs that differ in their seed alone.
        key: `CLEAN`, `WORST` or the label of an attack.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
        tested: Whether a single pair gets McNemar's p.
    """
    pairs = list(_pairs(runs, key))
    if not pairs:
        return MISSING
    cell = points(pairs, level=level, marks=marks, tested=tested)
    same = len(pairs) == 1 and _same_epoch(runs)
    return dataclasses.replace(cell, details=("same epoch",)) if same else cell


def points(
    pairs: Sequence[tuple[Flags, Flags]],
    *,
    level: float,
    marks: Mapping[str, str],
    tested: bool = False,
) -> Cell:
    """First minus second in percentage points: a paired interval, or Student's over seeds.

    Args:
        pairs: One or more pairs of flags, each pair of the same examples.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
        tested: Whether a single pair gets McNemar's p.
    """
    values = [100 * (sum(b) - sum(a)) / len(b) for b, a in pairs]
    if len(pairs) > 1:
        low, high = of_mean(values, level=level)
        details = (f"[{signed(low)}, {signed(high)}]", *spread(values))
    else:
        low, high = paired(*pairs[0], level=level)
        details = (f"[{signed(100 * low)}, {signed(100 * high)}]",)
        details += (probability(mcnemar(*pairs[0])),) if tested else ()
    return _cell(signed(mean(values)), details, marks)


def probability(p: float) -> str:
    """Three decimals, "p = 0.031", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(number: float) -> str:
    """One decimal with its sign; nothing is "-0.0"."""
    text = f"{number:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _pairs(runs: Sequence[Run], key: str) -> Iterator[tuple[Flags, Flags]]:
    for run in runs:
        if {"best", "last"} <= set(run.checkpoints):
            both = run.checkpoints["best"], run.checkpoints["last"]
            best, last = (flags(checkpoint, key) for checkpoint in both)
            if best and last and verdicts.same_examples(both[0].result, both[1].result):
                yield best, last


def _same_epoch(runs: Sequence[Run]) -> bool:
    epochs = [run.checkpoints[name].epoch for run in runs for name in ("best", "last")]
    return None not in epochs and len(set(epochs)) == 1


def _cell(value: str, details: tuple[str, ...], marks: Mapping[str, str]) -> Cell:
    return Cell(value=value, details=details, marks=tuple(marks), state=state(marks))


def state(marks: Mapping[str, str]) -> Literal["value", "suspicious", "invalid"]:
    """How far a number with these notes, label to severity, can be believed."""
    if "invalid" in marks.values():
        return "invalid"
    return "suspicious" if "warning" in marks.values() else "value"
