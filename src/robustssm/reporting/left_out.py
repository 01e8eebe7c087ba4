"""Runs and files that are in no table and no figure, and why."""

from collections.abc import Sequence

from robustssm.reporting.base import Cell, Row, RowGroup, Section, Table
from robustssm.reporting.runs import LeftOut, Runs


def section(runs: Runs) -> Section:
    """Runs and files of probes that are in no table, with reasons; no blocks if there are none.

    Args:
        runs: Everything found.
    """
    damaged = [file for run in runs.finished for file in run.damaged]
    made = []
    if runs.left_out:
        made.append(_reasons("Runs that are in no table and no figure.", "Run", runs.left_out))
    if damaged:
        made.append(
            _reasons("Files of probes that are in no table and no figure.", "File", damaged)
        )
    title = "Unfinished and damaged runs" if runs.left_out else "Damaged files"
    return Section(name="left-out", title=title, blocks=tuple(made))


def _reasons(caption: str, corner: str, which: Sequence[LeftOut]) -> Table:
    return Table(
        caption=caption,
        corner=corner,
        columns=(("State",), ("Reason",)),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(head=each.name, cells=(Cell(value=each.state), Cell(value=each.reason)))
                    for each in which
                )
            ),
        ),
        words=2,
    )
