"""The verbs that look at runs that are there: list them, and compare two."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustssm.cli.options import out

if TYPE_CHECKING:
    from robustssm.experiment.display import Display

TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Keep event files in RUN/tensorboard too (pip install 'robustssm[tracking]').",
    ),
]


def runs(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Runs, or directories of those; runs by default."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            help="name, recipe, status, seed, clean, robust, verdict, time or started; the highest "
            "accuracy comes first."
        ),
    ] = "name",
    filter_: Annotated[
        str,
        typer.Option(
            "--filter", help="Only runs with this text in name, recipe, overrides, status, verdict."
        ),
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Show the last checkpoint too.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Write the metrics of the listed runs as event files into this directory."
        ),
    ] = None,
) -> None:
    """List runs, whatever became of them: status, accuracies, verdict, time."""
    from robustssm.reporting.listing import listing

    places = directories or [path for path in (Path("runs"),) if path.exists()]
    found = listing(places, sort=sort, filter=filter_)
    if json_:
        for run in found:
            print(json.dumps(run.to_dict()))  # noqa: T201 - plain, however narrow the terminal
    elif not found:
        where = ", ".join(map(str, places)) or "runs"
        matching = f" with '{filter_}'" if filter_ else ""
        text = f"No runs{matching} in {where}; `robustssm run RECIPE` makes one."
        out.print(text, highlight=False, soft_wrap=True)
    else:
        from robustssm.cli.tracking_tables import listing_table, show

        show(listing_table(found, last=last))
    if tensorboard is not None:
        whole = [run for run in found if run.status != "damaged"]
        _export([(run.name, Path(run.path)) for run in whole], tensorboard)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run, or a directory of runs.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What to compare it with.")],
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    attack: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Only this attack, as tables call it.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object for everything.")] = False,
) -> None:
    """Compare two runs on the same test examples: settings, differences, McNemar's test.

    Directories of runs are paired by recipe and seed, or by seed where each holds one recipe.
    """
    from robustssm.reporting.contrast import contrast, over_seeds
    from robustssm.reporting.matching import by_recipe, match, read_runs

    matched = match(read_runs(first), read_runs(second))
    families = [
        [contrast(a, b, checkpoint=checkpoint, attack=attack) for a, b in pairs]
        for pairs in by_recipe(matched.pairs)
    ]
    if json_:
        record = {
            "comparisons": [
                {
                    "pairs": [each.to_dict() for each in family],
                    "over_seeds": [each.to_dict() for each in over_seeds(family)],
                }
                for family in families
            ],
            "alone": list(matched.alone),
        }
        print(json.dumps(record))  # noqa: T201 - plain, however narrow the terminal
        return
    from robustssm.cli.tracking_tables import contrast_tables, show

    for family in families:
        for table in contrast_tables(family):
            show(table)
    if matched.alone:
        out.print(f"Without a partner: {', '.join(matched.alone)}", highlight=False, soft_wrap=True)


@contextmanager
def tracked(run: Path, display: "Display", tensorboard: bool) -> Iterator["Display"]:
    """The display, which keeps event files of the run too if asked to.

    Args:
        run: Directory of the run.
        display: Shows progress.
        tensorboard: Whether to keep event files.
    """
    if not tensorboard:
        yield display
        return
    from robustssm.experiment.tensorboard import followed

    with followed(run, display) as both:
        yield both


def _export(places: Sequence[tuple[str, Path]], directory: Path) -> None:
    from robustssm.experiment.tensorboard import export

    for name, path in places:
        export(path, directory / name)
    out.print(f"tensorboard --logdir {directory}", highlight=False, soft_wrap=True)
