"""The poisoning laboratory: every study with its controls, defences, brewed poisons and audits."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from robustssm.core.config import register, settings
from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
from robustssm.records.poisoning import PoisonResult
from robustssm.reporting import (
    brewing,
    defences,
    poison_studies,
    sequence_audit,
)
from robustssm.reporting import poison_names as said
from robustssm.reporting import poison_tables as tables
from robustssm.reporting.base import (
    Block,
    Cell,
    Document,
    Paragraph,
    Report,
    Row,
    RowGroup,
    Section,
    Table,
)
from robustssm.reporting.runs import LeftOut, Runs, Study

_Kind = TypeVar("_Kind")


@register("poisoning")
@settings
class Poisoning(Report):
    """Clean-label poisoning: studies of the theory, sweeps, defences, brewed poisons, audits.

    Source: slutzky2024implicit, section 4, with the controls that it lacks.
    """

    title: str = "Clean-label poisoning of state space models"

    def render(self, runs: Runs) -> Document:
        """The document; the same results give the same document."""
        results = [study.result for study in _of(runs.studies, PoisonResult)]
        made = [
            Section(name="poisoning", title="Poisoning", blocks=tuple(_about(runs.studies))),
            *poison_studies.sections([each for each in results if each.runs]),
            Section(
                name="poison-sweeps",
                title="What the effect of poisoning depends on",
                blocks=tuple(poison_studies.sweeps([each for each in results if each.sweep])),
            ),
            *_further(runs.studies),
            Section(
                name="poison-files", title="Poisoning results", blocks=tuple(_files(runs.studies))
            ),
            Section(
                name="poison-left-out",
                title="Damaged poisoning results",
                blocks=tuple(_damaged(runs.damaged)),
            ),
        ]
        return Document(title=self.title, sections=tuple(s for s in made if s.blocks))


def _of(studies: Sequence[Study], kind: type[_Kind]) -> Iterator[Any]:
    return (study for study in studies if isinstance(study.result, kind))


def _further(studies: Sequence[Study]) -> Iterator[Section]:
    parts = (
        ("defences", "Detectors and defences", DefenceResult, defences.blocks),
        ("brewing", "Brewed poisons for trained classifiers", BrewingResult, brewing.blocks),
        ("sequence-audit", "Audits of sequences", AuditResult, sequence_audit.blocks),
    )
    for name, title, kind, made in parts:
        found = [(study.name, study.result) for study in _of(studies, kind)]
        yield Section(name=name, title=title, blocks=tuple(made(found)))


def _about(studies: Sequence[Study]) -> Iterator[Block]:
    if not studies:
        return
    yield Paragraph(
        text=(
            "Poisoning with clean labels adds correctly labelled training sequences after which a "
            "state space model still fits its training data and fails on longer sequences. Special "
            "sequences have something at a late position, so that short lags are learned directly "
            "and not as a by-product of a few states. Beside every headline stand its controls: "
            "the same comparison at equal training loss, placebo sequences, a random start."
        )
    )
    table = tables.glance([s.result for s in _of(studies, PoisonResult)])
    if table is not None:
        yield table


def _files(studies: Sequence[Study]) -> Iterator[Block]:
    if studies:
        rows = tuple(Row(head=study.name, cells=(Cell(value=_what(study)),)) for study in studies)
        yield Table(
            caption="Files that the sections on poisoning are made of.",
            corner="File",
            columns=(("Content",),),
            groups=(RowGroup(rows=rows),),
            words=1,
        )


def _what(study: Study) -> str:
    match study.result:
        case PoisonResult() as result:
            return said.study(result)
        case BrewingResult():
            return "Brewed poisons"
        case DefenceResult():
            return "Detectors and defences"
        case AuditResult() as result:
            return f"Audit of {result.source}"


def _damaged(left_out: Sequence[LeftOut]) -> Iterator[Block]:
    if left_out:
        rows = tuple(Row(head=each.name, cells=(Cell(value=each.reason),)) for each in left_out)
        yield Table(
            caption="Files of poisoning studies that are in no table and no figure.",
            corner="File",
            columns=(("Reason",),),
            groups=(RowGroup(rows=rows),),
            words=1,
        )
