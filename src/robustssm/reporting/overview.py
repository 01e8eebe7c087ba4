"""The overview: the paper's main table and training curves from the records of a set of runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.reporting import (
    attribution,
    cells,
    comparison,
    controls,
    curves,
    details,
    effects,
    figures,
    inflation,
    ledger,
    left_out,
    names,
    notes,
    origins,
    overfitting,
    published,
    relation_figures,
    tables,
    theory,
    versions,
)
from robustssm.reporting.base import (
    Block,
    Document,
    Figure,
    Fold,
    Notes,
    Paragraph,
    Report,
    Section,
)
from robustssm.reporting.cells import CLEAN, Group
from robustssm.reporting.notes import Marks, Noted
from robustssm.reporting.runs import Run, Runs

_FEW_NOTES = 4
"""So many stand above the table that they concern, more below it; the verdict always above."""


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
        noted = notes.of(ordered)
        marks = notes.marks(noted)
        targets = {run.name: f"run-{number}" for number, run in enumerate(ordered, 1)}
        made = [
            Section(name="about", title="What this is", blocks=_about(runs, groups, noted)),
            Section(
                name="accuracy",
                title="Accuracy, clean and under attack",
                blocks=(
                    *self._accuracy(groups, ordered, noted, marks),
                    *origins.folds(groups, targets),
                ),
            ),
            Section(
                name="claims",
                title="What holds of the papers' claims",
                blocks=tuple(ledger.blocks(runs, groups, level=self.level)),
            ),
            Section(
                name="effects",
                title="What the released code's differences do",
                blocks=tuple(effects.blocks(groups, marks=marks, level=self.level)),
            ),
            Section(
                name="controls",
                title="What controls say",
                blocks=tuple(controls.blocks(groups, marks=marks, level=self.level)),
            ),
            Section(
                name="comparison",
                title="Is the difference more than chance?",
                blocks=tuple(self._comparison(groups, marks)),
            ),
            Section(
                name="strength",
                title="Robust accuracy by radius",
                blocks=tuple(self._strength(groups)),
            ),
            Section(
                name="curves", title="Training curves", blocks=tuple(_overview_figures(groups))
            ),
            Section(
                name="overfitting",
                title="Robust overfitting",
                blocks=tuple(overfitting.blocks(groups, marks=marks, level=self.level)),
            ),
            *_explanations(groups, self.level),
            Section(
                name="runs",
                title="Runs",
                blocks=tuple(self._runs(ordered, targets, noted, marks)),
            ),
        ]
        made.append(left_out.section(runs))
        return Document(title=self.title, sections=tuple(s for s in made if s.blocks))

    def _accuracy(
        self, groups: Sequence[Group], runs: Sequence[Run], noted: Sequence[Noted], marks: Marks
    ) -> Iterator[Block]:
        yield notes.summary(runs)
        said = (Notes(notes=tuple(each.note for each in noted)),) if noted else ()
        table = tables.headline(groups, marks=marks, level=self.level)
        # Every number bears the marks of its notes: many notes need not keep it from being seen.
        yield from (*said, table) if len(noted) <= _FEW_NOTES else (table, *said)
        for text in _remarks(groups):
            yield Paragraph(text=text)
        alone = [g for g in groups if published.beside(g, CLEAN, "best") is None]
        printed = published.orientation(alone)
        if printed is not None:
            yield Fold(
                name="orientation",
                summary="Published on other data, for orientation",
                blocks=(printed,),
            )
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

    def _comparison(self, groups: Sequence[Group], marks: Marks) -> Iterator[Block]:
        made = (
            comparison.table(groups, marks=marks, level=self.level),
            inflation.table(groups, marks=marks, level=self.level),
        )
        yield from (table for table in made if table is not None)

    def _strength(self, groups: Sequence[Group]) -> Iterator[Block]:
        for number, (section, members) in enumerate(_sections(groups), 1):
            for place, (family, having) in enumerate(curves.families(members).items(), 1):
                structures = list(dict.fromkeys(group.structure for group in having))
                methods = dict.fromkeys(group.method for group in tables.by_method(having))
                yield Figure(
                    name=f"radii-{number}-{place}",
                    title=f"Robust accuracy by radius, {section[0]}",
                    caption=(
                        f"{section[0]}, {section[1]}: best checkpoints under "
                        f"{names.attack(family[0])}, at other radii. Bands: {self.level:.0%} "
                        "Wilson interval of one run; several seeds: mean and range."
                    ),
                    panels=tuple(
                        curves.comparison(having, family, method, structures, level=self.level)
                        for method in methods
                    ),
                )

    def _runs(
        self,
        runs: Sequence[Run],
        targets: Mapping[str, str],
        noted: Sequence[Noted],
        marks: Marks,
    ) -> Iterator[Block]:
        yield tables.index(runs, targets, marks=marks, level=self.level)
        for run in runs:
            yield details.fold(run, targets[run.name], noted, marks=marks, level=self.level)


def _in_order(runs: Sequence[Run], groups: Sequence[Group]) -> list[Run]:
    """In the order of the table; repetitions that it leaves out stand last."""
    place = {run.name: at for at, group in enumerate(groups) for run in group.runs}
    return sorted(runs, key=lambda run: (place.get(run.name, len(groups)), run.seed, run.name))


def _about(runs: Runs, groups: Sequence[Group], noted: Sequence[Noted]) -> tuple[Block, ...]:
    data = "; ".join(
        f"{dataset} ({tables.sizes([r for g in members for r in g.runs])} test examples) "
        f"against {threat}"
        for (dataset, threat), members in _sections(groups)
    )
    rules = "; ".join(sorted({run.selection for run in runs.finished}))
    invalid = sum(each.note.severity == "invalid" for each in noted)
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
    mixed = versions.notes(runs)
    return (Paragraph(text=text), *((Notes(notes=mixed, repeated=True),) if mixed else ()))


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


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _explanations(groups: Sequence[Group], level: float) -> Iterator[Section]:
    """What probes say; a section without blocks is not shown."""
    yield Section(
        name="attribution",
        title="Where the perturbation grows and shrinks",
        blocks=tuple(attribution.blocks(groups)),
    )
    for name, title, contents in theory.SECTIONS:
        yield Section(name=name, title=title, blocks=tuple(contents(groups)))
    yield Section(
        name="relation",
        title="Does the theory explain anything?",
        blocks=tuple(relation_figures.blocks(groups, level=level)),
    )
