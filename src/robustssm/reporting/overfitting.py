"""Robust overfitting from records alone: best minus last, and training minus test accuracy.

Source: rice2020overfitting; qi2024exploring, Figures 1, 2 and 5.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from statistics import mean

from robustssm.reporting import cells, intervals, looks, names, overfitting_figures
from robustssm.reporting.base import MISSING, Block, Cell, Figure, Row, RowGroup, Table
from robustssm.reporting.cells import WORST, Group, signed
from robustssm.reporting.notes import Marks
from robustssm.reporting.pairs import paired
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import same_examples

_PAPER = {"PGD-AT": "1", "TRADES": "2", "Standard": "5"}
_SPLITS = ("train", "test")


def blocks(groups: Sequence[Group], *, marks: Marks, level: float) -> Iterator[Block]:
    """Figures and the table, if training watched adversarial test examples.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    watched = [group for group in groups if overfitting_figures.has_test(group.runs)]
    methods = sorted({g.method for g in watched}, key=lambda m: names.rank(names.METHODS, m))
    sections = list(dict.fromkeys(group.section for group in watched))
    members = [[g for g in watched if g.section == section] for section in sections]
    for number, method in enumerate(methods, 1):
        for place, family in enumerate(looks.families(groups), 1):
            own = [g for g in watched if g.method == method and g.structure in family.structures]
            if own:
                yield _figure(members, own, family, f"{number}-{place}")
    if watched:
        yield table(watched, marks=marks, level=level)


def table(groups: Sequence[Group], *, marks: Marks, level: float) -> Table:
    """What is lost after the best checkpoint, and what training examples are better off.

    Args:
        groups: Cells whose runs watched adversarial test examples.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    made: dict[str, list[Row]] = {}
    for group in sorted(groups, key=lambda g: names.rank(names.METHODS, g.method)):
        title = f"{', '.join(group.section)}; {group.method}"
        row = (_lost(group, marks, level), _final(group, "train"), _final(group, "test"))
        gaps = tuple(_gap(group, checkpoint, level) for checkpoint in ("best", "last"))
        made.setdefault(title, []).append(Row(head=group.structure, cells=row + gaps))
    return Table(
        caption=(
            "Robust accuracy in percent, differences in points. Best minus last: test examples of "
            "the evaluation, right under every attack, paired. Training minus test: under the "
            "attack that training watched them with, on the examples it watched, at the epochs of "
            f"the best and of the last checkpoint. Brackets: {level:.0%} intervals; one run: over "
            "examples (best minus last by Agresti and Min, training minus test by Newcombe); "
            "several seeds: Student's t around their mean, over seeds. An interval above zero is "
            "overfitting that examples, or seeds, do not explain."
        ),
        corner="Structure",
        columns=(
            ("Test", "Best minus last"),
            ("Last epoch, watched", "Training"),
            ("Last epoch, watched", "Test"),
            ("Training minus test", "Best epoch"),
            ("Training minus test", "Last epoch"),
        ),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
    )


def _figure(
    sections: Sequence[Sequence[Group]], own: Sequence[Group], family: looks.Family, name: str
) -> Figure:
    method = own[0].method
    places = "; ".join(", ".join(section) for section in dict.fromkeys(g.section for g in own))
    known = method in _PAPER and not family.scaled
    layout = f", the layout of Figure {_PAPER[method]} of the paper" if known else ""
    return Figure(
        name=f"overfitting-{name}",
        title=f"Loss and accuracy over training, {method}",
        caption=(
            f"{method}{layout}: {places}. Loss and accuracy at the end of epochs, on clean and on "
            "adversarial examples of both splits, without augmentation. Colour and marker: "
            "structure; one line per seed."
        ),
        panels=(overfitting_figures.curves(sections, method, family.structures),),
        wide=True,
    )


def watched(run: Run, split: str, epoch: int | None) -> float | None:
    """Adversarial accuracy on the watched examples of a split, or None if not measured then.

    Args:
        run: A finished run.
        split: "train", "validation" or "test".
        epoch: The epoch; None for one that is not on record.
    """
    key = f"{split}_adversarial_accuracy"
    values = {record.epoch: record.values.get(key) for record in run.epochs}
    return None if epoch is None else values.get(epoch)


def examples(run: Run, split: str) -> int | None:
    """How many examples of a split training watched, or None if the accuracies contradict it."""
    monitor = run.experiment.get("monitor")
    size = monitor.get(split) if isinstance(monitor, dict) else None
    if not isinstance(size, int) or size < 1:
        return None
    if split == "test" and run.test_size is not None:
        size = min(size, run.test_size)
    key = f"{split}_adversarial_accuracy"
    counts = [size * record.values[key] for record in run.epochs if key in record.values]
    # A split may hold fewer examples than were asked for; then the counts are no whole numbers.
    return size if all(abs(count - round(count)) < 1e-4 for count in counts) else None


def _lost(group: Group, marks: Marks, level: float) -> Cell:
    pairs = []
    for run in group.runs:
        if {"best", "last"} <= set(run.checkpoints):
            best, last = run.checkpoints["best"], run.checkpoints["last"]
            flags = cells.flags(best, WORST), cells.flags(last, WORST)
            if flags[0] and flags[1] and same_examples(best.result, last.result):
                pairs.append((flags[0], flags[1]))
    noted: dict[str, str] = {}
    for run in group.runs:
        for checkpoint in ("best", "last"):
            noted.update(marks.get((run.name, checkpoint), {}))
    ends = paired(*pairs[0], level=level) if len(pairs) == 1 else None
    cell = _points([(sum(a) - sum(b)) / len(a) for a, b in pairs], ends, level)
    return (
        dataclasses.replace(cell, marks=tuple(noted), state=cells.state(noted)) if pairs else cell
    )


def _final(group: Group, split: str) -> Cell:
    values = [watched(run, split, _epoch(run, "last")) for run in group.runs]
    there = [value for value in values if value is not None]
    if not there:
        return MISSING
    size = examples(group.runs[0], split)
    several = f"{len(there)} seeds" if len(there) > 1 else f"n = {size}" if size else ""
    return Cell(value=f"{100 * mean(there):.1f}", details=(several,) if several else ())


def _gap(group: Group, checkpoint: str, level: float) -> Cell:
    rows = []
    for run in group.runs:
        values = [watched(run, split, _epoch(run, checkpoint)) for split in _SPLITS]
        if values[0] is not None and values[1] is not None:
            rows.append((run, values[0], values[1]))
    ends = None
    if len(rows) == 1:
        run, train, test = rows[0]
        m, n = (examples(run, split) for split in _SPLITS)
        if m and n:
            ends = intervals.newcombe(round(train * m), m, round(test * n), n, level=level)
    return _points([train - test for _, train, test in rows], ends, level)


def _epoch(run: Run, checkpoint: str) -> int | None:
    if checkpoint in run.checkpoints:
        return run.checkpoints[checkpoint].epoch
    return run.epochs[-1].epoch if checkpoint == "last" and run.epochs else None


def _points(differences: Sequence[float], ends: tuple[float, float] | None, level: float) -> Cell:
    """Differences of one run or of several seeds, in points, with the interval of either."""
    if not differences:
        return MISSING
    value = signed(100 * mean(differences))
    if len(differences) > 1:
        ends = intervals.of_mean(differences, level=level)
    shown = f"[{signed(100 * ends[0])}, {signed(100 * ends[1])}]" if ends else "n not recorded"
    seeds = (f"{len(differences)} seeds",) if len(differences) > 1 else ()
    return Cell(value=value, details=(shown, *seeds))
