"""What this installation has, and whether its parts agree with their references."""

from pathlib import Path

from rich.console import Console
from rich.table import Table


def examine(console: Console, data_dir: Path | None) -> int:
    """Prints versions, devices, kernels, data and a check of every layer; returns a status."""
    from robustssm.core.provenance import commit, versions
    from robustssm.experiment.health import data_sets, devices, kernels, layers

    table = Table("what", "state", title="robustssm doctor")
    for name, version in versions().items():
        table.add_row(name, version)
    table.add_row("commit", commit() or "not a git checkout")
    good = True
    for section in (devices(), kernels(), data_sets(data_dir), layers()):
        for finding in section:
            good &= finding.good
            mark = "" if finding.good else "[bold red]wrong:[/] "
            table.add_row(finding.subject, mark + finding.state)
    console.print(table)
    return 0 if good else 1
