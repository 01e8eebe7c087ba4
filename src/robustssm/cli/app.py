"""The verbs: list, show, run, evaluate, report, demo, doctor."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from robustssm.core.errors import Inapplicable, NonFiniteLoss, RunInUse

app = typer.Typer(
    name="robustssm",
    help="Train, attack and explain deep state space models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. objective.beta=3."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="ROBUSTSSM_DATA", help="Where data files are looked for."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default what suits the batch.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def main() -> None:
    """Runs the command line; errors that the user can mend end with their message and status 2.

    Any other error is ours, and keeps its traceback.
    """
    try:
        app()
    except (ValueError, OSError, Inapplicable, RunInUse, NonFiniteLoss) as error:
        Console(stderr=True).print("[bold red]error:[/]", end=" ")
        print(_message(error), file=sys.stderr)  # noqa: T201 - plain: paths must not be wrapped
        sys.exit(2)


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="recipes, a tier of them (digits, mnist14, ...), or a kind of part: attack, "
            "dataset, layer, model, objective, optimizer, report, tokens."
        ),
    ] = "recipes",
) -> None:
    """List recipes, or the registered parts of a kind."""
    from robustssm import recipes
    from robustssm.cli.tables import parts_table, recipes_table
    from robustssm.core.config import PACKAGES

    if what == "recipes" or what in recipes.TIERS:
        out.print(recipes_table(None if what == "recipes" else what))
        return
    kind = what if what in PACKAGES else what.removesuffix("s")
    out.print(parts_table(kind))


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe, or the directory of a run.")],
    set_: Set = None,
) -> None:
    """Show every setting of a recipe, or of a finished run, as JSON."""
    from robustssm.core.config import override, to_dict
    from robustssm.experiment.rundir import read_recipe
    from robustssm.recipes import recipe as make

    if (Path(recipe) / "recipe.json").exists():
        settings = read_recipe(Path(recipe))["experiment"]
    else:
        settings = to_dict(override(make(recipe), _assignments(set_)))
    out.print_json(json.dumps(settings))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe; see `robustssm list`.")],
    directory: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run; runs/RECIPE by default.")
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run that is there.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=...")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a recipe and evaluate it; kill it at any time and continue with --resume."""
    from robustssm.cli.display import display
    from robustssm.cli.tables import result_table
    from robustssm.core.config import override
    from robustssm.experiment import run as execute
    from robustssm.recipes import recipe as make

    assignments = _assignments(set_) | ({} if seed is None else {"seed": str(seed)})
    place = directory or Path("runs") / recipe.replace(":", ".")
    with display(out, quiet=quiet) as shown:
        record = execute(
            override(make(recipe), assignments),
            place,
            name=recipe,
            overrides=assignments,
            resume=resume,
            data_dir=data_dir,
            device=device,
            threads=threads,
            display=shown,
        )
    out.print(result_table(record))
    out.print(f"{place / 'evaluation.json'}", soft_wrap=True, highlight=False)


@app.command()
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
            overrides=_assignments(set_) | overrides,
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


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of runs, or directories of those.")
    ],
    directory: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "report"
    ),
) -> None:
    """Write a self-contained HTML report and a Markdown table of runs."""
    from robustssm.reporting.write import write_report

    paths = write_report(runs, directory)
    for path in (paths.html, paths.markdown):
        out.print(f"{path}", soft_wrap=True, highlight=False)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--out", help="Where runs and report go.")] = Path(
        "demo"
    ),
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one per core.")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
) -> None:
    """Train six structures in three ways on 8x8 digits, attack them all, and write the report."""
    from robustssm.cli.demo import run_demo

    sys.exit(run_demo(out, directory, jobs=jobs, device=device, seed=seed))


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Say what this installation has: versions, devices, data, and whether the parts agree."""
    from robustssm.cli.doctor import examine

    sys.exit(examine(out, data_dir))


def _assignments(set_: list[str] | None) -> dict[str, str]:
    assignments = {}
    for text in set_ or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(
                f"`--set` must be KEY=VALUE; got '{text}'. For example: --set objective.beta=3"
            )
        assignments[key.strip()] = value.strip()
    return assignments


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    text: Any = error.args[0] if error.args else error
    return str(text)
