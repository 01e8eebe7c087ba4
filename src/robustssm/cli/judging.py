"""The verbs that judge a model: evaluate a run of ours, audit a model of anybody's."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustssm.cli.options import (
    DataDir,
    Device,
    KeepMemory,
    Quiet,
    Set,
    Threads,
    assignments,
    out,
)


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a trained run.")],
    suite: Annotated[
        str | None,
        typer.Option(
            help="autoattack_standard, autoattack_plus, autoattack_rand or quick (an upper bound), "
            "in place of the recipe's attacks."
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Only the first so many test examples.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Another radius, e.g. 8/255.")] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Run the costly checks of the numbers too.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted.")
    ] = False,
    max_hours: Annotated[
        float | None, typer.Option(help="Stop then, with the examples that are finished.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes, one per GPU, that share the examples.")
    ] = 1,
    set_: Set = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; the run's evaluation.json by default."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    keep_memory: KeepMemory = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a run's checkpoints again, by a suite or other attacks; resumable.

    Exit status 3: the numbers are unreliable.
    """
    from robustssm.cli.display import display
    from robustssm.cli.tables import result_table
    from robustssm.experiment import evaluate_run

    short = {"evaluation_examples": n, "threat.eps": eps}
    overrides = {key: str(value) for key, value in short.items() if value is not None}
    with display(out, quiet=quiet) as shown:
        record = evaluate_run(
            directory,
            overrides=assignments(set_) | overrides,
            suite=suite,
            out=file,
            data_dir=data_dir,
            device=device,
            threads=threads,
            resume=resume,
            max_hours=max_hours,
            diagnose=diagnose,
            processes=processes,
            display=shown,
        )
    out.print(result_table(record))
    if record["verdict"] == "unreliable":
        sys.exit(3)


def audit(
    function: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="Function without arguments that returns a model: inputs to logits.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="An .npz file with x and y (or x_test, y_test).")],
    eps: Annotated[str, typer.Option(help="Radius in the units of the inputs, e.g. 8/255.")],
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    bounds: Annotated[tuple[float, float], typer.Option(help="Range of the inputs.")] = (0.0, 1.0),
    suite: Annotated[
        str, typer.Option(help="As of `evaluate`; quick is an upper bound.")
    ] = "autoattack_standard",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Only the first examples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Run the costly checks of the numbers too.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an audit that was interrupted.")
    ] = False,
    max_hours: Annotated[
        float | None, typer.Option(help="Stop then, with the examples that are finished.")
    ] = None,
    directory: Annotated[
        Path, typer.Option("--out", help="Directory for evaluation.json and the journal.")
    ] = Path("audit"),
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Evaluate any model of your own, with the verdict on whether its number can be believed.

    Exit status 3: the numbers are unreliable.
    """
    from robustssm.cli.display import display
    from robustssm.cli.tables import result_table
    from robustssm.experiment.audit import audit as execute

    with display(out, quiet=quiet) as shown:
        record = execute(
            function,
            data,
            threat={"norm": norm, "eps": eps, "bounds": list(bounds)},
            suite=suite,
            examples=n,
            batch_size=batch_size,
            seed=seed,
            diagnose=diagnose,
            resume=resume,
            max_hours=max_hours,
            out=directory,
            device=device,
            threads=threads,
            display=shown,
        )
    out.print(result_table(record))
    if record["verdict"] == "unreliable":
        sys.exit(3)
