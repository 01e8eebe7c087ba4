"""By how much the released PGD, whose gradients are taken elsewhere, overstates robustness."""

import re
from collections.abc import Iterator, Sequence

from robustssm.records import EvaluationResult, Flags
from robustssm.reporting import cells, names
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import Group
from robustssm.reporting.notes import Marks, below
from robustssm.reporting.runs import Run

_RELEASED = re.compile(r"pgd_released-(\d+)")


def table(groups: Sequence[Group], *, marks: Marks, level: float) -> Table | None:
    """Released PGD, the correct one with as many steps, and all attacks together, side by side.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).

    Returns:
        The table, or None if no run was attacked by a released PGD and by another one.
    """
    sections = dict.fromkeys(group.section for group in groups)
    made = []
    for section in sections:
        members = [group for group in groups if group.section == section]
        rows = tuple(row for group in members for row in _rows(group, marks, level))
        if rows:
            made.append(RowGroup(rows=rows, title=", ".join(section)))
    if not made:
        return None
    runs = [r for g in groups for r in g.runs if any(True for _ in _labels(_best(r)))]
    others = [label for run in runs for label in _others(_best(run))]
    return Table(
        caption=(
            "What the released PGD overstates: accuracy of the best checkpoint in percent, under "
            "PGD as released (its gradients are taken up to 2 ε away), under a correct PGD with as "
            "many steps and one start, and under all correct attacks together, whichever is the "
            "strongest for an example. Differences in points, with their "
            f"{level:.0%} interval, paired on the same examples, and McNemar's exact p; several "
            "seeds: Student's interval over seeds, and standard deviation (sd). Different step "
            "sizes are not accounted for."
        ),
        corner="Model",
        columns=(
            ("Accuracy", "Released"),
            ("Accuracy", "Correct, same steps"),
            ("Accuracy", "Strongest"),
            ("Released overstates by", "against the same steps"),
            ("Released overstates by", "against the strongest"),
        ),
        groups=tuple(made),
        notes=below(runs, list(dict.fromkeys(others))),
    )


def _best(run: Run) -> EvaluationResult | None:
    return run.checkpoints["best"].result if "best" in run.checkpoints else None


def _others(result: EvaluationResult | None) -> list[str]:
    """Correct attacks with gradients of their own: PGD, APGD and suites."""
    survived = result.survived if result else {}
    return [k for k in survived if k.startswith(("pgd-", "apgd")) or k in names.SUITES]


def _labels(result: EvaluationResult | None) -> Iterator[tuple[str, str]]:
    """Labels of released attacks, with those of correct ones of as many steps."""
    if result and _others(result):
        for label in result.survived:
            found = _RELEASED.fullmatch(label)
            if found:
                yield label, f"pgd-{found[1]}"


def _rows(group: Group, marks: Marks, level: float) -> Iterator[Row]:
    labels = dict.fromkeys(pair for run in group.runs for pair in _labels(_best(run)))
    for released, same in labels:
        runs = [r for r in group.runs if (released, same) in _labels(_best(r))]
        noted: dict[str, str] = {}
        for run in runs:
            noted |= marks.get((run.name, "best"), {})
        flags = [_flags(run, released, same) for run in runs]
        columns = [[each[at] for each in flags] for at in range(3)]
        accuracies = tuple(_mean(column, noted, level) for column in columns)
        gaps = tuple(_gap(columns[0], column, noted, level) for column in columns[1:])
        steps = released.rpartition("-")[2]
        head = f"{group.structure}, {group.method}, {steps} steps"
        yield Row(head=head, cells=(*accuracies, *gaps))


def _flags(run: Run, released: str, same: str) -> tuple[Flags, Flags | None, Flags]:
    result = _best(run)
    assert result is not None, "the run has a label, so it has a best checkpoint"
    rows = (result.survived[label] for label in _others(result))
    strongest = tuple(all(row) for row in zip(*rows, strict=True))
    return result.survived[released], result.survived.get(same), strongest


def _mean(column: Sequence[Flags | None], marks: dict[str, str], level: float) -> Cell:
    rows = [row for row in column if row is not None]
    return cells.share(rows, level=level, marks=marks) if rows else MISSING


def _gap(
    first: Sequence[Flags | None],
    second: Sequence[Flags | None],
    marks: dict[str, str],
    level: float,
) -> Cell:
    both = zip(first, second, strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return cells.points(pairs, level=level, marks=marks, tested=True) if pairs else MISSING
