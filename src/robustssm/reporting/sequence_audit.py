"""The audit of a file of sequences: which ones are suspicious, at which lags, and how sure."""

from collections.abc import Iterator, Sequence

from robustssm.records.audit import AuditResult, Finding, LagFinding
from robustssm.reporting import detection_figures as drawn
from robustssm.reporting import poison_names as said
from robustssm.reporting.base import (
    Block,
    Cell,
    Facts,
    Figure,
    Fold,
    Paragraph,
    Row,
    RowGroup,
    Table,
)

LISTED = 20
"""So many findings stand in the open; the others in a fold."""
LAGS = 64
"""So many lags are listed, flagged ones first."""


def blocks(results: Sequence[tuple[str, AuditResult]]) -> Iterator[Block]:
    """Everything on audits of files.

    Args:
        results: Names of files, and what they hold.
    """
    for place, (_, result) in enumerate(results, 1):
        yield Paragraph(text=_verdict(result))
        if result.findings:
            yield _findings(result, result.findings[:LISTED], "most suspicious first")
        rest = result.findings[LISTED:]
        if rest:
            yield Fold(
                name=f"audit-rest-{place}",
                summary=f"{len(rest)} more flagged sequences of {result.source}",
                blocks=(_findings(result, rest, "continued"),),
            )
        panels = tuple(_panels(result))
        if panels:
            yield Figure(
                name=f"audit-{place}",
                title=f"Audit of {result.source}",
                caption=(
                    f"{result.source}: scores of flagged sequences, infinite ones at the upper "
                    "edge; the lags that make them suspicious; and how strongly the whole file "
                    "excites each lag. Lag 0 is the last position."
                ),
                panels=panels,
            )
        if result.remarks:
            yield Paragraph(text=" ".join(result.remarks))
        yield Fold(
            name=f"audit-lags-{place}",
            summary=f"Lags and settings of the audit of {result.source}",
            blocks=(
                *((_lags(result),) if result.lags else ()),
                Facts(items=tuple((key, str(value)) for key, value in result.settings.items())),
            ),
        )


def _verdict(result: AuditResult) -> str:
    share = result.flagged / result.sequences if result.sequences else 0.0
    channels = f" with {result.channels} channels" if result.channels > 1 else ""
    text = (
        f"{result.source}: {result.flagged:,} of {result.sequences:,} sequences of length "
        f"{result.length}{channels} are suspicious ({share:.2%}), by medians and spreads of "
        f"{result.calibrated_on:,}."
    )
    lags = [each.lag for each in result.lags if each.flagged]
    if lags:
        shown = ", ".join(map(str, lags[:8])) + (", ..." if len(lags) > 8 else "")
        text += f" Few sequences excite {'lag' if len(lags) == 1 else 'lags'} {shown}."
    if result.greedy:
        text += (
            " No sequence excites lag 1: here a small student learns states one after another, and "
            "sequences that do would change what it learns."
        )
    return f"{text} Suspicious is not poisoned: look at the sequences before dropping them."


def _findings(result: AuditResult, found: Sequence[Finding], order: str) -> Table:
    return Table(
        caption=(
            f"{result.source}: flagged sequences, {order}. Scores are robust z, the distance from "
            "the median in robust standard deviations; the share is that of calibrating sequences "
            "that are as suspicious or more."
        ),
        corner="Row of the file",
        columns=(
            ("lags, most unusual first",),
            ("score",),
            ("z of the tail",),
            ("z of a lag",),
            ("share as suspicious",),
        ),
        groups=(RowGroup(rows=tuple(_finding(each) for each in found)),),
        words=1,
    )


def _finding(each: Finding) -> Row:
    shown = ", ".join(map(str, each.lags[:8])) + (", ..." if len(each.lags) > 8 else "")
    return Row(
        head=str(each.index),
        cells=(
            Cell(value=shown or "none"),
            Cell(value=said.number(each.score)),
            Cell(value=said.number(each.tail_z)),
            Cell(value=said.number(each.lag_z)),
            Cell(value=f"{each.share:.2%}".replace("%", " %")),
        ),
    )


def _panels(result: AuditResult) -> Iterator[str]:
    if result.findings:
        threshold = result.settings.get("threshold")
        yield drawn.findings(
            [each.index for each in result.findings],
            [each.score for each in result.findings],
            count=result.sequences,
            threshold=float(threshold) if isinstance(threshold, int | float) else None,
        )
        shown = result.findings[:LISTED]
        yield drawn.where([(each.index, each.lags) for each in shown], length=result.length)
    if result.lags:
        ordered = sorted(result.lags, key=lambda each: each.lag)
        yield drawn.lags(
            [each.energy for each in ordered],
            [each.flagged for each in ordered],
            title="Energy by lag",
            label="mean square",
        )


def _lags(result: AuditResult) -> Table:
    chosen = sorted(result.lags, key=lambda each: (not each.flagged, each.lag))[:LAGS]
    left = len(result.lags) - len(chosen)
    return Table(
        caption=(
            f"{result.source}: how the sequences excite each lag. Carried by: n if all sequences "
            "share the energy alike, 1 if a single one has it."
        ),
        corner="Lag",
        columns=(("energy",), ("nonzero",), ("carried by",), ("flagged",)),
        groups=(RowGroup(rows=tuple(_lag(each) for each in chosen)),),
        notes=(f"{left} more lags, none of them flagged, are left out.",) if left else (),
    )


def _lag(each: LagFinding) -> Row:
    return Row(
        head=str(each.lag),
        cells=(
            Cell(value=said.number(each.energy)),
            Cell(value=f"{each.nonzero:.1%}".replace("%", " %")),
            Cell(value=said.number(each.carried_by)),
            Cell(value="yes" if each.flagged else "no"),
        ),
    )
