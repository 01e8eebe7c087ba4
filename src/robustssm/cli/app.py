"""The verbs, and what becomes of an error; `robustssm --help` lists them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from robustssm.cli import exporting, judging, poison, probing, sweeping, tracking
from robustssm.cli.budget import Budget, EqualBudget, with_epochs
from robustssm.cli.options import (
    DataDir,
    Device,
    Devices,
    KeepMemory,
    Nodes,
    Quiet,
    Set,
    Threads,
    assignments,
    out,
)
from robustssm.core.errors import Inapplicable, NonFiniteLoss, OutOfMemory, RunInUse

app = typer.Typer(
    name="robustssm",
    help="Train, attack and explain deep state space models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line; errors that the user can mend end with their message and status 2.

    Any other error is ours, and keeps its traceback.
    """
    try:
        app()
    except (ValueError, OSError, Inapplicable, RunInUse, NonFiniteLoss, OutOfMemory) as error:
        Console(stderr=True).print("[bold red]error:[/]", end=" ")
        print(_message(error), file=sys.stderr)  # noqa: T201 - plain: paths must not be wrapped
        sys.exit(2)


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="recipes, a tier of them (digits, mnist14, ...), or a kind of part: attack, "
            "dataset, layer, model, objective, optimizer, probe, report, tokens."
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
    cost: Annotated[
        bool, typer.Option("--cost", help="Show what training costs, in passes, instead.")
    ] = False,
) -> None:
    """Show every setting of a recipe, or of a finished run, as JSON."""
    from robustssm.core.config import override, to_dict
    from robustssm.experiment.rundir import read_recipe
    from robustssm.recipes import recipe as make

    if (Path(recipe) / "recipe.json").exists():
        settings = read_recipe(Path(recipe))["experiment"]
    else:
        settings = to_dict(override(make(recipe), assignments(set_)))
    if cost:
        from robustssm.core.config import from_dict
        from robustssm.experiment import Experiment
        from robustssm.experiment.budget import price

        settings = price(from_dict(Experiment, settings)).to_dict()
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
    budget: Budget = None,
    equal_budget: EqualBudget = None,
    tensorboard: tracking.TensorBoard = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    threads: Threads = None,
    keep_memory: KeepMemory = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe and evaluate it; kill it at any time and continue with --resume."""
    from robustssm.cli.display import display
    from robustssm.cli.tables import result_table
    from robustssm.core.config import override
    from robustssm.experiment import run as execute
    from robustssm.recipes import recipe as make

    changes = assignments(set_) | ({} if seed is None else {"seed": str(seed)})
    changes = with_epochs(recipe, changes, budget=budget, like=equal_budget, data_dir=data_dir)
    place = directory or Path("runs") / recipe.replace(":", ".")
    with display(out, quiet=quiet) as bars, tracking.tracked(place, bars, tensorboard) as shown:
        record = execute(
            override(make(recipe), changes),
            place,
            name=recipe,
            overrides=changes,
            resume=resume,
            data_dir=data_dir,
            device=device,
            devices=devices,
            nodes=nodes,
            threads=threads,
            display=shown,
        )
    if not record:  # the first of several processes is elsewhere, and prints
        return
    out.print(result_table(record))
    out.print(f"{place / 'evaluation.json'}", soft_wrap=True, highlight=False)


app.command()(tracking.runs)
app.command()(tracking.compare)
app.command()(sweeping.sweep)
app.command()(judging.evaluate)
app.command()(judging.audit)
app.command()(probing.probe)
app.command()(exporting.export)
app.add_typer(poison.app)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Directories of runs, or directories of those.")
    ],
    directory: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "report"
    ),
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Mix results of several versions of robustssm.")
    ] = False,
) -> None:
    """Write a report of runs: one HTML page that stands alone, Markdown, LaTeX and CSV."""
    from robustssm.reporting.write import write_report

    paths = write_report(runs, directory, mixed=mixed)
    for path in (paths.html, paths.markdown, paths.latex, paths.results, paths.tables):
        if path is not None:
            out.print(f"{path}", soft_wrap=True, highlight=False)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--out", help="Where runs and report go.")] = Path(
        "demo"
    ),
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one per core.")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
    keep_memory: KeepMemory = False,
) -> None:
    """Train six structures in three ways on 8x8 digits, attack them all, and write the report."""
    from robustssm.cli.demo import run_demo

    sys.exit(run_demo(out, directory, jobs=jobs, device=device, seed=seed))


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Say what this installation has: versions, devices, data, and whether the parts agree."""
    from robustssm.cli.doctor import examine

    sys.exit(examine(out, data_dir))


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    text: Any = error.args[0] if error.args else error
    return str(text)
