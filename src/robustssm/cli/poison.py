"""The verbs of the poisoning laboratory: robustssm poison theory, beyond, network, ..."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustssm.cli.options import DataDir, Device, Quiet, Set, assignments, out

if TYPE_CHECKING:
    from robustssm.experiment.poison import Piece
    from robustssm.poisoning.training import Progress

app = typer.Typer(
    name="poison",
    help="Clean-label poisoning of SSMs: study, craft, detect, defend.",
    no_args_is_help=True,
)

Out = Annotated[
    Path, typer.Option("--out", help="Directory for results; `poison report` reads it.")
]
Again = Annotated[bool, typer.Option("--again", help="Make also what is there already.")]
DEFAULT = Path("poison")


@app.command()
def theory(
    directory: Out = DEFAULT, set_: Set = None, again: Again = False, quiet: Quiet = False
) -> None:
    """Theorem 1's experiment, exactly: published seeds, lengths 7 and 9 (two seconds)."""
    from robustssm.experiment.poison import theory_pieces

    _run(theory_pieces(), directory, set_, again, quiet)


@app.command()
def beyond(
    directory: Out = DEFAULT, set_: Set = None, again: Again = False, quiet: Quiet = False
) -> None:
    """A, B and C trained, 64 and 32 fresh seeds, with controls (under a minute)."""
    from robustssm.experiment.poison import beyond_pieces

    _run(beyond_pieces(), directory, set_, again, quiet)


@app.command()
def network(
    directory: Out = DEFAULT, set_: Set = None, again: Again = False, quiet: Quiet = False
) -> None:
    """The SSM in front of a network, 16 fresh seeds (a minute)."""
    from robustssm.experiment.poison import network_pieces

    _run(network_pieces(), directory, set_, again, quiet)


@app.command()
def dynamics(
    directory: Out = DEFAULT, set_: Set = None, again: Again = False, quiet: Quiet = False
) -> None:
    """Entries, effective rank and gamma over training, teachers of 1 to 4 states (a minute)."""
    from robustssm.experiment.poison import dynamics_pieces

    _run(dynamics_pieces(), directory, set_, again, quiet)


@app.command()
def sweep(
    what: Annotated[
        str, typer.Argument(help="tie_gap, init_scale, amplitude, count, position, or all.")
    ],
    directory: Out = DEFAULT,
    set_: Set = None,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    """What the effect depends on: one setting varied, all else as published."""
    from robustssm.experiment.poison import SWEEPS, sweep_pieces

    names = SWEEPS if what == "all" else (what,)
    _run([piece for name in names for piece in sweep_pieces(name)], directory, set_, again, quiet)


@app.command()
def defences(
    directory: Out = DEFAULT, set_: Set = None, again: Again = False, quiet: Quiet = False
) -> None:
    """Score detectors and defences, also against an attacker who hides (three minutes)."""
    from robustssm.cli.poison_tables import defence_table
    from robustssm.experiment.poison import run_defences

    with bars(quiet=quiet) as progress:
        file, result = run_defences(directory, assignments(set_), again=again, progress=progress)
    if not quiet:
        out.print(defence_table(result))
    out.print(f"{file}", soft_wrap=True, highlight=False)


@app.command()
def brew(
    scale: Annotated[
        str,
        typer.Argument(help="small (digits, minutes), mnist14 (an hour), published (a GPU)."),
    ] = "small",
    structure: Annotated[str, typer.Option(help="s4d, lru or mamba2.")] = "s4d",
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 3,
    directory: Out = DEFAULT,
    set_: Set = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Brew poisons for a classifier and train it with them and with every control; resumable."""
    from robustssm.cli.poison_tables import brewing_table
    from robustssm.experiment.poison import run_brewing

    with bars(quiet=quiet) as progress:
        file, result = run_brewing(
            scale,
            structure,
            range(seeds),
            directory,
            assignments(set_),
            data_dir=data_dir,
            device=device,
            progress=progress,
        )
    if not quiet:
        out.print(brewing_table(result))
    out.print(f"{file}", soft_wrap=True, highlight=False)


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="Sequences, one a row: .npy, .npz or .csv.")],
    array: Annotated[str | None, typer.Option(help="Which array of an .npz.")] = None,
    directory: Out = DEFAULT,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Which of your own sequences could poison an SSM: which examples, which lags, how sure.

    Exit status 1: some are suspicious.
    """
    from robustssm.cli.poison_tables import audit_table
    from robustssm.experiment.poison import run_audit

    with bars(quiet=quiet) as progress:
        written, result = run_audit(
            file, directory, assignments(set_), array=array, progress=progress
        )
    if not quiet:
        out.print(audit_table(result))
    out.print(f"{written}", soft_wrap=True, highlight=False)
    if result.flagged:
        raise typer.Exit(1)


@app.command()
def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Results, or directories of them; poison by default."),
    ] = None,
    directory: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "report"
    ),
) -> None:
    """One self-contained HTML page and Markdown of what the studies found."""
    from robustssm.reporting.write import write_report

    written = write_report(paths or [DEFAULT], directory)
    for path in (written.html, written.markdown):
        out.print(f"{path}", soft_wrap=True, highlight=False)


def _run(
    pieces: "list[Piece]", directory: Path, set_: list[str] | None, again: bool, quiet: bool
) -> None:
    """Runs studies with a bar for each part, and prints what they found."""
    from robustssm.cli.poison_tables import result_table
    from robustssm.experiment.poison import run_pieces

    with bars(quiet=quiet) as progress:
        found = run_pieces(
            pieces, directory, overrides=assignments(set_), again=again, progress=progress
        )
    for file, result in found.items():
        if not quiet:
            out.print(result_table(result))
        out.print(f"{file}", soft_wrap=True, highlight=False)


@contextmanager
def bars(*, quiet: bool) -> "Iterator[Progress | None]":
    """A progress bar for every part that reports itself."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tasks = {}
    with Progress(*columns, console=out, transient=True) as shown:

        def told(part: str, share: float) -> None:
            if part not in tasks:
                tasks[part] = shown.add_task(part, total=1.0)
            shown.update(tasks[part], completed=share)

        yield told
