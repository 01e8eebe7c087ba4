"""Everything there is on one run, for its fold: verdict, numbers, suites, curves, origin."""

import json
from collections.abc import Iterator, Mapping, Sequence

from robustssm.reporting import curves, figures, notes, probes, suites, tables
from robustssm.reporting.base import (
    Block,
    Code,
    Facts,
    Figure,
    Fold,
    Notes,
    Paragraph,
)
from robustssm.reporting.notes import Marks, Noted
from robustssm.reporting.runs import Run


def fold(run: Run, name: str, noted: Sequence[Noted], *, marks: Marks, level: float) -> Fold:
    """The fold of a run.

    Args:
        run: A finished run.
        name: Of the fold, unique in the document.
        noted: Notes on all runs.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    what = f"{run.dataset}, {run.structure}, {run.method}, seed {run.seed}; {run.verdict}"
    blocks = tuple(_blocks(run, name, noted, marks, level))
    return Fold(name=name, summary=f"{run.name}: {what}", blocks=blocks)


def _blocks(
    run: Run, name: str, noted: Sequence[Noted], marks: Marks, level: float
) -> Iterator[Block]:
    yield notes.of_run(run)
    own = tuple(each.note for each in noted if each.run == run.name)
    if own:
        yield Notes(notes=own, repeated=True)
    yield tables.of_run(run, marks=marks, level=level)
    yield from suites.of_run(run, marks=marks, level=level)
    panels = curves.of_run(run, level=level)
    if panels:
        yield Figure(
            name=f"{name}-attacks",
            title=f"Robust accuracy of {run.name} by strength of the attack",
            caption=(
                "Robust accuracy while one setting of an attack varies, on the same examples. "
                f"Bands: {level:.0%} Wilson interval. Where steps or restarts still lower it at "
                "the right end, the attack has not converged, and the accuracy is an upper bound."
            ),
            panels=panels,
        )
    yield _training(run, name)
    yield from probes.of_run(run, name)
    yield Facts(items=tuple(_facts(run)))
    settings = json.dumps(run.experiment, indent=1, ensure_ascii=False)
    yield Fold(name=f"{name}-settings", summary="All settings", blocks=(Code(text=settings),))


def _training(run: Run, name: str) -> Block:
    drawn: list[figures.Quantity] = [q for q in figures.QUANTITIES if figures.has_curves([run], q)]
    if not drawn:
        return Paragraph(text="No figures were recorded at the end of epochs: there are no curves.")
    return Figure(
        name=f"{name}-curves",
        title=f"Training curves of {run.name}",
        caption="Loss and accuracy at the end of each epoch.",
        panels=tuple(figures.run_curves(run, quantity) for quantity in drawn),
    )


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    origin = run.provenance
    yield "Recipe", run.recipe
    if run.overrides:
        yield "Changed settings", ", ".join(f"{k} = {v}" for k, v in run.overrides.items())
    yield "Command", origin.command
    yield "Seed", str(run.seed)
    yield "Best checkpoint chosen by", run.selection
    for name, checkpoint in run.checkpoints.items():
        yield f"Epoch of {name}", _known(checkpoint.epoch)
    yield "Commit", _known(origin.commit)
    yield "Versions", ", ".join(_versions(origin.version, origin.packages))
    yield "Device", origin.device
    yield "Started", origin.started
    yield "Seconds", _known(origin.seconds)
    speeds = [r.values["images_per_second"] for r in run.epochs if "images_per_second" in r.values]
    if speeds:
        yield "Images per second", f"{sorted(speeds)[len(speeds) // 2]:.0f} (median over epochs)"
    for key, value in run.further.items():
        if value not in ([], {}, "", None):
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(own: str, packages: Mapping[str, str]) -> list[str]:
    return [f"robustssm {own}", *(f"{name} {version}" for name, version in packages.items())]


def _known(value: object) -> str:
    return "not recorded" if value is None else str(value)
