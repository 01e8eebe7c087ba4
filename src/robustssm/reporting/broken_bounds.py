"""Bounds that do not hold: those of the paper as printed, and, as an alarm, any other.

Source: qi2024exploring, Theorem 4.1.1.
"""

from collections.abc import Iterator, Sequence
from statistics import mean

from robustssm.reporting import probes, theory_figures
from robustssm.reporting.base import Block, Cell, Note, Notes, Paragraph, Row, RowGroup, Table
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import Run
from robustssm.reporting.theory_figures import BOUNDS, GROWTH, Line

_ROWS = 40  # of the table, at most
Broken = tuple[Group, Run, Line, str, str, float]
"""Where a bound does not hold: its name, its side and what it says."""


def lines_of(run: Run) -> list[Line]:
    """Everything that is bounded, whichever probe found it."""
    results = (probes.found(run, name) for name in (BOUNDS, GROWTH))
    return [line for r in results if r is not None for line in theory_figures.lines(r)]


def blocks(groups: Sequence[Group]) -> Iterator[Block]:
    """What the bounds as printed, and what proper ones, are worth on these layers.

    Args:
        groups: All cells, in order.
    """
    checked, found, wrong = 0, [], []
    for group in groups:
        for run in group.runs:
            for line in lines_of(run):
                own = {name for name, _, _ in line.limits if theory_figures.printed(name)}
                checked += len(own)
                for name, side, limit in line.violated():
                    (found if name in own else wrong).append((group, run, line, name, side, limit))
    if wrong:
        yield Paragraph(text="Bounds that should hold and do not: numbers beside them are wrong.")
        yield _alarm(wrong)
    if checked:
        share = f"{len(found)} of {checked}"
        yield Paragraph(
            text="Bounds as printed, summed over channels, that do not hold on the trained "
            f"layers: {share}.{_channels(groups)}"
        )
    if found:
        yield _table(found)


def _alarm(wrong: Sequence[Broken]) -> Notes:
    texts = (
        f"{run.name}: {name} at {line.place} is {probes.digits(limit)}, {line.target} is "
        f"{probes.digits(line.value or 0.0)}."
        for _, run, line, name, _, limit in wrong
    )
    notes = (Note(label=f"b{at}", text=t, severity="invalid") for at, t in enumerate(texts, 1))
    return Notes(notes=tuple(notes), repeated=True)


def _channels(groups: Sequence[Group]) -> str:
    """Shares of single channels for which a printed bound is false, where they are on record."""
    texts = []
    for side in ("lower", "upper"):
        found = [
            probes.quantity(run, BOUNDS, f"printed_{side}_false")
            for group in groups
            for run in group.runs
        ]
        shares = [v for q in found if q is not None for v in probes.finite(q.values)]
        if shares:
            texts.append(f"{side} {100 * mean(shares):.1f} % (at most {100 * max(shares):.1f} %)")
    return (
        f" Channels for which it is false, mean over layers: {', '.join(texts)}." if texts else ""
    )


def _table(found: Sequence[Broken]) -> Table:
    rows = []
    for group, run, line, name, side, limit in found[:_ROWS]:
        words = (f"{group.structure}, {group.method}", line.place, name.replace("_", " "), side)
        value = line.value or 0.0
        times = abs(value / limit) if limit else float("inf")
        numbers = (
            probes.number(limit),
            probes.number(line.value),
            Cell(value=probes.digits(times, 3)),
        )
        cells = (*(Cell(value=word) for word in words), *numbers)
        rows.append(Row(head=run.name, cells=cells))
    more = (f"{len(found) - _ROWS} further ones are not shown.",) if len(found) > _ROWS else ()
    return Table(
        caption=(
            "Bounds as printed in the paper that do not hold on trained layers: what they say, "
            "what is there, and the second over the first."
        ),
        corner="Run",
        columns=tuple(
            (head,) for head in ("Model", "Place", "Bound", "Side", "It says", "There is", "Ratio")
        ),
        groups=(RowGroup(rows=tuple(rows)),),
        words=4,
        notes=more,
    )
