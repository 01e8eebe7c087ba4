"""The correlations of the strongest quantities, with their intervals; tables of all of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from robustssm.reporting import looks, names, style
from robustssm.reporting.base import (
    MISSING,
    Block,
    Cell,
    Figure,
    Fold,
    Paragraph,
    Row,
    RowGroup,
    Table,
)
from robustssm.reporting.cells import MINUS, Group, probability
from robustssm.reporting.relation import EVERYTHING, LEAST, Correlation, Relation, relation

SHOWN = 20
"""Quantities in the figure and in the first table."""
_LEVEL = 0.05  # of Holm's p, below which a correlation is said to remain


def blocks(groups: Sequence[Group], *, level: float) -> Iterator[Block]:
    """What was found, drawn and in numbers, for every data set and threat with enough cells.

    Args:
        groups: All cells, in order.
        level: Confidence of the intervals, in (0, 1).
    """
    for number, section in enumerate(dict.fromkeys(group.section for group in groups), 1):
        found = relation([group for group in groups if group.section == section], level=level)
        if found is None or not found.correlations:
            continue
        where = ", ".join(section)
        strongest = strength(found)
        yield Paragraph(text=_said(found, where))
        yield Figure(
            name=f"relation-{number}",
            title=f"Rank correlation with robust accuracy, {section[0]}",
            caption=(
                f"{where}: Spearman's rank correlation of the quantities with robust accuracy, "
                f"over {found.cells} cells; those with the smallest p over all methods. Lines: "
                f"{level:.0%} intervals by Fisher's z (Bonett and Wright's variance); filled: "
                f"p (Holm) below {_LEVEL}. Chosen by what they show: read the table of all."
            ),
            panels=(forest(found, strongest[:SHOWN]),),
            wide=True,
        )
        yield table(found, strongest[:SHOWN], level=level)
        if len(strongest) > SHOWN:
            yield Fold(
                name=f"relation-{number}-all",
                summary=f"All {len(strongest)} quantities, {where}",
                blocks=(table(found, found.quantities, level=level),),
            )


def strength(found: Relation) -> list[str]:
    """Quantities by their p-value over all cells, the smallest first."""

    def chance(name: str) -> float:
        own = found.of(name, EVERYTHING)
        return 2.0 if own is None else own.p

    return sorted(found.quantities, key=chance)


def table(found: Relation, quantities: Sequence[str], *, level: float) -> Table:
    """Correlations of these quantities, a column for each scope.

    Args:
        found: All correlations.
        quantities: Which, in order.
        level: Confidence of the intervals, in (0, 1).
    """
    rows = tuple(
        Row(
            head=name.replace("_", " "),
            cells=tuple(_cell(found.of(name, scope)) for scope in found.scopes),
        )
        for name in quantities
    )
    return Table(
        caption=(
            "Spearman's rank correlation with robust accuracy (best checkpoint, right on the clean "
            f"example and under {', '.join(map(names.attack, found.attacks))}). Brackets: "
            f"{level:.0%} interval by Fisher's z with Bonett and Wright's variance. p: exact over "
            "all orders for up to 8 cells, else by Student's t; p (Holm): adjusted for all "
            f"{len(found.correlations)} correlations that were taken."
        ),
        corner="Quantity",
        columns=tuple((scope,) for scope in found.scopes),
        groups=(RowGroup(rows=rows),),
        notes=(
            "A cell is one point, the mean of its seeds. Over all methods a correlation may only "
            "tell methods apart; cells of one structure, or of one with and without adaptive "
            "scaling, are not independent, so intervals are too narrow.",
            f"\N{EN DASH}: fewer than {LEAST} cells have it, or it does not vary.",
        ),
    )


def forest(found: Relation, quantities: Sequence[str]) -> str:
    """A line per quantity: correlation over all cells and within methods, as SVG.

    Args:
        found: All correlations.
        quantities: Which, from top to bottom.
    """
    scopes = found.scopes

    def fill(figure: Drawing) -> None:
        axes = figure.add_subplot()
        for row, name in enumerate(quantities):
            for at, scope in enumerate(scopes):
                own = found.of(name, scope)
                if own is None:
                    continue
                y = row + 0.62 * ((at + 0.5) / len(scopes) - 0.5)
                look = _look(at)
                axes.plot(own.interval, [y, y], color=look["color"], linewidth=1.1)
                if own.adjusted >= _LEVEL:
                    look["markerfacecolor"] = style.PAPER
                axes.plot([own.rho], [y], **look)
        axes.axvline(0, color=style.MUTED, linewidth=0.8)
        axes.set(xlim=(-1.03, 1.03), ylim=(len(quantities) - 0.5, -0.5))
        heads = [style.shortened(name.replace("_", " "), 52) for name in quantities]
        axes.set_yticks(range(len(quantities)), heads)
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.grid(visible=False, axis="y")
        for row in range(1, len(quantities)):
            axes.axhline(row - 0.5, color=style.GRID, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("rank correlation with robust accuracy")
        entries = [Line2D([], [], label=scope, **_look(at)) for at, scope in enumerate(scopes)]
        style.legend(figure, looks.columns(entries, 8.4))

    each = 0.16 + 0.11 * len(scopes)
    return style.draw(fill, width=8.4, height=1.0 + each * len(quantities), fitted=True)


def _look(at: int) -> dict[str, Any]:
    look = looks.line(at - 1) if at else {"color": style.INK, "marker": "o"}
    kept = {key: look[key] for key in ("color", "marker")}
    return {**kept, "markersize": 5 if at == 0 else 4, "linestyle": "none", "markeredgewidth": 1.1}


def _cell(own: Correlation | None) -> Cell:
    if own is None:
        return MISSING
    low, high = own.interval
    details = (
        f"[{_signed(low)}, {_signed(high)}]",
        f"n = {own.n}, {probability(own.p)}",
        f"{probability(own.adjusted)} (Holm)",
    )
    return Cell(value=_signed(own.rho), details=details)


def _said(found: Relation, where: str) -> str:
    kept = [each for each in found.correlations if each.adjusted < _LEVEL]
    listed = "; ".join(
        f"{each.quantity.replace('_', ' ')} ({each.scope}, {_signed(each.rho)})"
        for each in kept[:8]
    )
    more = f"; and {len(kept) - 8} more" if len(kept) > 8 else ""
    outcome = (
        f"Below {_LEVEL} after Holm's adjustment for all of them: {len(kept)}, {listed}{more}."
        if kept
        else f"None remains below {_LEVEL} after Holm's adjustment for all of them."
    )
    left = ""
    if found.unreliable:
        left = f" Left out, as their evaluation is unreliable: {', '.join(found.unreliable)}."
    if found.constant:
        left += f" Not tested, as they are the same for every cell: {len(found.constant)}."
    return (
        f"{where}: {len(found.quantities)} quantities of probes against robust accuracy over "
        f"{found.cells} cells ({len(found.runs)} runs), over all methods and within each: "
        f"{len(found.correlations)} "
        f"correlations. {outcome} A correlation over trained models is no cause.{left}"
    )


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", MINUS)
