"""The verb that explains a run: probe."""

from pathlib import Path
from typing import Annotated

import typer

from robustssm.cli.options import DataDir, Device, Quiet, Set, Threads, assignments, out


def probe(
    directories: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of trained runs.")
    ],
    probes: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", metavar="NAME", help="Which; see `robustssm list probe`. All by default."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="The first so many examples of each split.")
    ] = None,
    set_: Set = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Measure where a run's robustness comes from, and what theory says; `report` shows it.

    Writes RUN/probes/NAME.json. Settings: examples=64, attack.steps=50, threat.eps=..., and a
    probe's own with its name in front (`--set spectrum.frequencies=128`).
    """
    from robustssm.cli.tables import probe_table
    from robustssm.experiment import probe_run

    overrides = assignments(set_) | ({} if n is None else {"examples": str(n)})
    lacking = False
    for directory in directories:
        with out.status("", spinner="dots") as status:
            found, refused = probe_run(
                directory,
                probes=probes,
                overrides=overrides,
                data_dir=data_dir,
                device=device,
                threads=threads,
                progress=lambda name, at=directory, on=status: on.update(f"{at}: {name}"),
            )
        for result in () if quiet else found.values():
            out.print(probe_table(result))
        for name, reason in refused.items():
            out.print(f"{name}: {reason}", highlight=False)
        for name in found:
            out.print(f"{directory / 'probes' / name}.json", soft_wrap=True, highlight=False)
        lacking = lacking or bool(probes and refused)
    if lacking:  # what was asked for by name is missing somewhere
        raise typer.Exit(2)
