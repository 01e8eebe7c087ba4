"""Cells beside other cells that share their seeds: both accuracies, and the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from robustssm.reporting import cells
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import CLEAN, Group, signed, spread
from robustssm.reporting.evidence import autoattack
from robustssm.reporting.intervals import of_mean
from robustssm.reporting.notes import Marks
from robustssm.reporting.pairs import paired
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import same_examples

METRICS = {
    "clean": "Clean",
    "released": "Released PGD-10",
    "correct": "PGD-10",
    "aa": "AutoAttack",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A cell, and another one that is compared with it."""

    section: tuple[str, str]
    label: str
    before: Group
    after: Group


def pair_table(
    pairs: Sequence[Pair],
    *,
    heads: tuple[str, str],
    corner: str,
    what: str,
    marks: Marks,
    level: float,
    remark: str = "",
) -> Table:
    """Accuracies of the best checkpoints of both cells, and after minus before.

    Args:
        pairs: One row each, grouped by section.
        heads: What the first and the second of a pair are.
        corner: What a row is.
        what: What is compared: the caption's first words.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
        remark: Sentences for the end of the caption.
    """
    shown = [
        key
        for key in METRICS
        if any(_label(run, key) for p in pairs for run in (*p.before.runs, *p.after.runs))
    ]
    made: dict[str, list[Row]] = {}
    for pair in pairs:
        entries = tuple(cell for key in shown for cell in _triple(pair, key, marks, level))
        made.setdefault(", ".join(pair.section), []).append(Row(head=pair.label, cells=entries))
    seeds = sorted({len(_shared(pair)) for pair in pairs})
    caption = (
        f"{what}: accuracy of the best checkpoints in percent, and the difference in points, "
        f"{heads[1]} minus {heads[0]}, over the seeds that both have "
        f"({' or '.join(map(str, seeds))}). Brackets: {level:.0%} interval over seeds; one "
        f"seed: over examples. {remark}"
    )
    return Table(
        caption=caption.rstrip(),
        corner=corner,
        columns=tuple((METRICS[key], head) for key in shown for head in (*heads, "difference")),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
    )


def _triple(pair: Pair, key: str, marks: Marks, level: float) -> tuple[Cell, Cell, Cell]:
    before, after = (_accuracy(g, key, marks, level) for g in (pair.before, pair.after))
    return before, after, _difference(pair, key, marks, level)


def _label(run: Run, key: str) -> str | None:
    """The label of a number of the best checkpoint, or None if it was not measured."""
    if "best" not in run.checkpoints:
        return None
    if key == "aa":
        return autoattack(run, "best")
    wanted = {"clean": CLEAN, "released": "pgd_released-10", "correct": "pgd-10"}[key]
    return wanted if cells.flags(run.checkpoints["best"], wanted) else None


def _noted(runs: Sequence[Run], key: str, marks: Marks) -> Mapping[str, str]:
    noted: dict[str, str] = {}
    for run in runs if key != "clean" else ():
        noted |= marks.get((run.name, "best"), {})
    return noted


def _accuracy(group: Group, key: str, marks: Marks, level: float) -> Cell:
    runs = [run for run in group.runs if _label(run, key)]
    rows = [
        f for run in runs if (f := cells.flags(run.checkpoints["best"], _label(run, key) or ""))
    ]
    return cells.share(rows, level=level, marks=_noted(runs, key, marks)) if rows else MISSING


def _shared(pair: Pair) -> list[tuple[Run, Run]]:
    after = {run.seed: run for run in pair.after.runs}
    return [(run, after[run.seed]) for run in pair.before.runs if run.seed in after]


def _difference(pair: Pair, key: str, marks: Marks, level: float) -> Cell:
    """After minus before, by seed: other trainings, so examples are paired for one seed only."""
    runs = [(a, b) for a, b in _shared(pair) if _label(a, key) and _label(b, key)]
    flags = [
        tuple(cells.flags(run.checkpoints["best"], _label(run, key) or "") or () for run in both)
        for both in runs
    ]
    if not flags:
        return MISSING
    values = [100 * (sum(b) / len(b) - sum(a) / len(a)) for a, b in flags]
    details: tuple[str, ...] = ()
    if len(values) > 1:
        low, high = of_mean(values, level=level)
        details = (f"[{signed(low)}, {signed(high)}]", *spread(values))
    elif same_examples(*(run.checkpoints["best"].result for run in runs[0])):
        low, high = paired(flags[0][1], flags[0][0], level=level)
        details = (f"[{signed(100 * low)}, {signed(100 * high)}]", "1 seed")
    noted = _noted([run for both in runs for run in both], key, marks)
    return Cell(
        value=signed(mean(values)), details=details, marks=tuple(noted), state=cells.state(noted)
    )
