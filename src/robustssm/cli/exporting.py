"""The verb that makes records small enough to be published."""

from pathlib import Path
from typing import Annotated

import typer

from robustssm.cli.options import out


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Directories of runs or of poisoning studies, or above those."),
    ],
    directory: Annotated[Path, typer.Option("--out", help="Directory for the copies.")],
    probes: Annotated[
        bool, typer.Option("--probes", help="Copy what probes measured too.")
    ] = False,
) -> None:
    """Copy records of finished runs, without weights, and of poisoning studies, to publish them."""
    from robustssm.records.export import export as copies

    done = list(copies(runs, directory, probes=probes))
    size = sum(each.bytes for each in done) / 1e6
    out.print(f"{len(done)} records, {size:.1f} MB: {directory}", soft_wrap=True, highlight=False)
