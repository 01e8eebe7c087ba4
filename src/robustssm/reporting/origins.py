"""Where every number comes from: cell by cell its runs, and the command that makes each again."""

import shlex
from collections.abc import Mapping, Sequence

from robustssm.reporting.base import Cell, Fold, Row, RowGroup, Table
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import Run

_COMMIT = 12


def folds(groups: Sequence[Group], targets: Mapping[str, str]) -> tuple[Fold, ...]:
    """One fold per data set and threat, which the rows of the main table lead to.

    Args:
        groups: All cells, in order.
        targets: Name of a run to the name of the fold with its details.
    """
    made = []
    for number, section in enumerate(dict.fromkeys(group.section for group in groups), 1):
        members = [group for group in groups if group.section == section]
        made.append(
            Fold(
                name=f"origins-{number}",
                summary=f"Where these numbers come from: {', '.join(section)}",
                blocks=(table(members, targets),),
            )
        )
    return tuple(made)


def table(groups: Sequence[Group], targets: Mapping[str, str]) -> Table:
    """The runs of every cell.

    Args:
        groups: Cells of one data set and threat.
        targets: Name of a run to the name of the fold with its details.
    """
    return Table(
        caption=(
            "Every cell's runs; the command makes a run again, and the details of a run hold all "
            "its settings."
        ),
        corner="Run",
        columns=tuple((head,) for head in ("Seed", "Command", "Commit", "Started", "Device")),
        groups=tuple(
            RowGroup(
                rows=tuple(_row(run, targets.get(run.name, "")) for run in group.runs),
                title=f"{group.structure}, {group.method}",
            )
            for group in groups
        ),
        words=5,
    )


def command(run: Run) -> str:
    """The command that makes a run again."""
    changed = {**run.overrides}
    changed.setdefault("seed", run.seed)
    words = ["robustssm", "run", run.recipe]
    for key, value in changed.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _row(run: Run, target: str) -> Row:
    origin = run.provenance
    bare, plus, _ = (origin.commit or "not recorded").partition("+changes")
    commit = bare if origin.commit is None else bare[:_COMMIT] + ("+changes" if plus else "")
    words = (str(run.seed), command(run), commit, origin.started, origin.device)
    return Row(head=run.name, cells=tuple(Cell(value=word) for word in words), target=target)
