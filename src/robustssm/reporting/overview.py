"""The overview: the paper's main table and training curves from the records of a set of runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.records import Flagged
from robustssm.reporting import cells, figures, tables
from robustssm.reporting.base import (
    Block,
    Cell,
    Code,
    Document,
    Facts,
    Figure,
    Fold,
    Note,
    Notes,
    Paragraph,
    Report,
    Row,
    RowGroup,
    Section,
    Table,
)
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import LeftOut, Run, Runs


@register("overview")
@settings
class Overview(Report):
    """Accuracies, training curves and origins of all runs.

    Source: qi2024exploring, Table 1 and Figures 1, 2 and 5.
    """

    title: str = "Adversarial robustness of deep state space models"
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence of the intervals."""

    def render(self, runs: Runs) -> Document:
        """The document; the same runs give the same document."""
        groups = cells.groups(runs.finished)
        ordered = _in_order(runs.finished, groups)
        noted = _notes(ordered)
        marks = _marks(noted)
        made = [
            Section(name="about", title="What this is", blocks=_about(runs, groups, noted)),
            Section(
                name="accuracy",
                title="Accuracy, clean and under attack",
                blocks=tuple(self._accuracy(groups, noted, marks)),
            ),
            Section(
                name="curves", title="Training curves", blocks=tuple(_overview_figures(groups))
            ),
            Section(
                name="runs",
                title="Runs",
                blocks=tuple(self._runs(ordered, noted, marks)),
            ),
        ]
        if runs.left_out:
            left_out = (_left_out(runs.left_out),)
            made.append(
                Section(name="left-out", title="Unfinished and damaged runs", blocks=left_out)
            )
        return Document(title=self.title, sections=tuple(s for s in made if s.blocks))

    def _accuracy(
        self, groups: Sequence[Group], noted: Sequence["_Noted"], marks: tables.Marks
    ) -> Iterator[Block]:
        if noted:
            yield Notes(notes=tuple(note for _, _, note in noted))
        yield tables.headline(groups, marks=marks, level=self.level)
        for text in _remarks(groups):
            yield Paragraph(text=text)
        for number, (section, members) in enumerate(_sections(groups), 1):
            methods = dict.fromkeys(group.method for group in tables.by_method(members))
            rows = list(dict.fromkeys(group.structure for group in members))
            yield Figure(
                name=f"accuracies-{number}",
                title=f"Clean and robust accuracy, {section[0]}",
                caption=(
                    f"{section[0]}, {section[1]}: accuracy of the best checkpoints on clean "
                    "examples and under every attack that was run. Lines: "
                    f"{self.level:.0%} Wilson interval of one run, or the range over several seeds."
                ),
                panels=tuple(
                    figures.accuracies(members, method, rows, level=self.level)
                    for method in methods
                ),
            )

    def _runs(
        self, runs: Sequence[Run], noted: Sequence["_Noted"], marks: tables.Marks
    ) -> Iterator[Block]:
        targets = {run.name: f"run-{number}" for number, run in enumerate(runs, 1)}
        yield tables.index(runs, targets, marks=marks, level=self.level)
        for run in runs:
            own = tuple(note for name, _, note in noted if name == run.name)
            blocks: list[Block] = [Notes(notes=own, repeated=True)] if own else []
            blocks.append(tables.of_run(run, marks=marks, level=self.level))
            blocks.append(_run_figure(run, targets[run.name]))
            blocks.append(Facts(items=tuple(_facts(run))))
            blocks.append(
                Fold(
                    name=f"{targets[run.name]}-settings",
                    summary="All settings",
                    blocks=(Code(text=json.dumps(run.experiment, indent=1, ensure_ascii=False)),),
                )
            )
            what = f"{run.dataset}, {run.structure}, {run.method}, seed {run.seed}"
            yield Fold(name=targets[run.name], summary=f"{run.name}: {what}", blocks=tuple(blocks))


_Noted = tuple[str, tuple[str, ...], Note]
"""Name of a run, checkpoints, and the note on them."""


def _in_order(runs: Sequence[Run], groups: Sequence[Group]) -> list[Run]:
    """In the order of the table; repetitions that it leaves out stand last."""
    place = {run.name: at for at, group in enumerate(groups) for run in group.runs}
    return sorted(runs, key=lambda run: (place.get(run.name, len(groups)), run.seed, run.name))


def _notes(runs: Sequence[Run]) -> list[_Noted]:
    noted: list[_Noted] = []
    for run in runs:
        concerned: dict[Flagged, list[str]] = {}
        for checkpoint, sign in run.warnings:
            concerned.setdefault(sign, []).append(checkpoint)
        for sign, checkpoints in concerned.items():
            which = " and ".join(checkpoints)
            place = f"{run.dataset}, {run.structure}, {run.method}, {which} of {run.name}"
            severity = "invalid" if sign.severity == "invalid" else "warning"
            label = f"w{len(noted) + 1}"
            text = f"{place}: {sign.message} ({sign.name})"
            note = Note(label=label, text=text, severity=severity)
            noted.append((run.name, tuple(checkpoints), note))
    return noted


def _marks(noted: Sequence[_Noted]) -> dict[tuple[str, str], dict[str, str]]:
    marks: dict[tuple[str, str], dict[str, str]] = {}
    for run, checkpoints, note in noted:
        for checkpoint in checkpoints:
            marks.setdefault((run, checkpoint), {})[note.label] = note.severity
    return marks


def _about(runs: Runs, groups: Sequence[Group], noted: Sequence[_Noted]) -> tuple[Block, ...]:
    data = "; ".join(
        f"{dataset} ({tables.sizes([r for g in members for r in g.runs])} test examples) "
        f"against {threat}"
        for (dataset, threat), members in _sections(groups)
    )
    rules = "; ".join(sorted({run.selection for run in runs.finished}))
    invalid = sum(note.severity == "invalid" for _, _, note in noted)
    signs = "No reliability warnings."
    if noted:
        signs = (
            f"Reliability warnings: {len(noted)}, {invalid} of them on numbers that must not be "
            "believed."
        )
    text = (
        f"{_count(len(runs.finished), 'finished run')} of state space models, trained by several "
        "methods and attacked after training. Data and threat: "
        f"{data}. The best checkpoint of a run was chosen by: {rules}. "
        f"{signs} "
        f"Left out as unfinished or damaged: {len(runs.left_out)}."
    )
    return (Paragraph(text=text),)


def _remarks(groups: Sequence[Group]) -> Iterator[str]:
    for (dataset, _), members in _sections(groups):
        differing = cells.further_differences(members)
        if differing:
            listed = ", ".join(differing[:8]) + (", ..." if len(differing) > 8 else "")
            yield (
                f"{dataset}: besides model, method and seed the runs also differ in {listed}; "
                "compare rows and columns with this in mind."
            )
    for group in groups:
        if group.repeats:
            yield (
                f"{group.section[0]}, {group.structure}, {group.method}: some seeds were run more "
                "than once. The table uses the run that was started last and leaves out "
                f"{', '.join(group.repeats)}."
            )


def _sections(groups: Sequence[Group]) -> list[tuple[tuple[str, str], list[Group]]]:
    sections: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        sections.setdefault(group.section, []).append(group)
    return list(sections.items())


def _overview_figures(groups: Sequence[Group]) -> Iterator[Block]:
    for number, (section, members) in enumerate(_sections(groups), 1):
        for quantity in figures.QUANTITIES:
            if figures.has_curves((run for group in members for run in group.runs), quantity):
                yield Figure(
                    name=f"{quantity}-{number}",
                    title=f"{quantity.capitalize()} during training, {section[0]}",
                    caption=(
                        f"{section[0]}, {section[1]}: {quantity} at the end of each epoch. "
                        "Colour: clean or adversarial examples; dashes: split. One line per seed."
                    ),
                    panels=(figures.overview(members, quantity),),
                    wide=True,
                )


def _run_figure(run: Run, name: str) -> Block:
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


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _left_out(runs: Sequence[LeftOut]) -> Table:
    return Table(
        caption="Runs that are in no table and no figure.",
        corner="Run",
        columns=(("State",), ("Reason",)),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(head=run.name, cells=(Cell(value=run.state), Cell(value=run.reason)))
                    for run in runs
                )
            ),
        ),
        words=2,
    )
