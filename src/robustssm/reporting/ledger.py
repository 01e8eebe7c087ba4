"""The ledger: every claim of the two papers, what was published, what came of it here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustssm.reporting import claims, poison_claims, printed_claims
from robustssm.reporting.base import (
    MISSING,
    Block,
    Cell,
    Fold,
    Paragraph,
    Row,
    RowGroup,
    Table,
)
from robustssm.reporting.cells import Group, probability
from robustssm.reporting.claims import Claim, Outcome
from robustssm.reporting.evidence import Measured, tiers
from robustssm.reporting.model_claims import CLAIMS
from robustssm.reporting.poison_claims import PoisonClaim
from robustssm.reporting.runs import Runs
from robustssm.reporting.seeds import Word
from robustssm.reporting.verdicts import Verdict

TONES: dict[Word, Verdict] = {
    "holds": "reliable",
    "fails": "unreliable",
    "cannot tell": "suspicious",
}
_PAPERS = {"model": "qi2024exploring", "poison": "slutzky2024implicit"}
_COLUMNS = (("What is compared",), ("Published",), ("Here",), ("Verdict",))
_CAPTION = (
    "Claims of the papers in our words. Published: the same comparison on the printed tables, and "
    "whether the claim holds as printed; empty where nothing is printed. Here: least and largest "
    "of the comparisons, each a mean over seeds. Several comparisons: a claim about all of them "
    "holds if every one does by its own p, and fails if one does by p (Holm)."
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: a claim, how the printed tables decide it, and how the runs do."""

    claim: Claim | PoisonClaim
    outcome: Outcome
    printed: Outcome | None
    place: str
    """Data set, threat and tier; empty for poisoning."""


def entries(runs: Runs, groups: Sequence[Group], *, level: float) -> list[Entry]:
    """Every claim on every tier of runs, and on the poisoning studies.

    Args:
        runs: Everything found.
        groups: Its cells.
        level: Confidence of intervals, in (0, 1).
    """
    printed = {claim.name: claims.printed(claim, level=level) for claim in CLAIMS}
    made = []
    for tier in tiers(groups):
        source = Measured(tier)
        named = tier.tier and tier.tier.partition("_")[0] != tier.tier
        place = ", ".join((*tier.section, f"tier {tier.tier}") if named else tier.section)
        for claim in CLAIMS:
            outcome = claims.judge(claim, source, level=level)
            made.append(
                Entry(claim=claim, outcome=outcome, printed=printed[claim.name], place=place)
            )
    for claim in poison_claims.CLAIMS:
        outcome = poison_claims.judge(claim, runs, level=level)
        made.append(Entry(claim=claim, outcome=outcome, printed=None, place=""))
    return made


def blocks(runs: Runs, groups: Sequence[Group], *, level: float) -> Iterator[Block]:
    """The ledger, its comparisons, what could not be tested, and what the tables alone decide.

    Args:
        runs: Everything found.
        groups: Its cells.
        level: Confidence of intervals, in (0, 1).
    """
    every = entries(runs, groups, level=level)
    tested = [entry for entry in every if entry.outcome.tested]
    decided = [entry for entry in tested if entry.outcome.word != "cannot tell"]
    if tested:
        yield Paragraph(text=_summary(tested))
    if decided:
        yield _table(decided, tested)
    unclear = [entry for entry in tested if entry not in decided]
    if unclear:
        yield Fold(
            name="claims-unclear",
            summary=f"Tested, and cannot be told: {len(unclear)}",
            blocks=(_table(unclear, tested),),
        )
    if tested:
        parts = tuple(_comparisons(tested, level))
        yield Fold(
            name="claims-parts",
            summary="Every comparison behind the claims",
            blocks=(Paragraph(text=_tests(level)), *parts),
        )
    untested = _untested(every)
    if untested:
        yield Fold(
            name="claims-untested",
            summary=f"Claims not tested by these runs: {len(untested)}",
            blocks=(_missing(untested),),
        )
    yield Fold(
        name="claims-printed",
        summary="The published tables against their own prose",
        blocks=(printed_table(level=level),),
    )


def printed_table(*, level: float) -> Table:
    """Claims of the prose as the printed tables decide them; needs no run."""
    rows = []
    for claim in CLAIMS:
        found = claims.printed(claim, level=level)
        if found is not None:
            where = f"{claim.where}; {' and '.join(claim.printed_on)}"
            cells = (
                Cell(value=claim.quantity, details=(where,)),
                Cell(value=claim.holds),
                Cell(value=found.text, details=found.details),
                _word(found.word),
            )
            rows.append(Row(head=claim.text, cells=cells))
    for check in printed_claims.checks():
        cells = (
            Cell(value="the tables beside the prose", details=(check.where,)),
            Cell(value=check.prose),
            Cell(value=check.tables),
            _word(check.word),
        )
        rows.append(Row(head=check.text, cells=cells))
    return Table(
        caption=(
            "Version 1 of qi2024exploring, tables 1 and 2: one run per cell, no intervals. Holds "
            "and fails are of the printed numbers alone, whatever the evaluation was worth."
        ),
        corner="Claim",
        columns=(("What is compared",), ("It would hold if",), ("Tables",), ("As printed",)),
        groups=(RowGroup(rows=tuple(rows)),),
        words=4,
    )


def _summary(tested: Sequence[Entry]) -> str:
    counts = []
    for place in dict.fromkeys(entry.place for entry in tested):
        words = [entry.outcome.word for entry in tested if entry.place == place]
        said = ", ".join(f"{words.count(w)} {claims.PLURAL[w]}" for w in TONES if w in words)
        counts.append(f"{place or 'Poisoning'}: {said}.")
    return (
        "What holds here holds for these data, sizes and budgets. On data other than the paper's "
        "it says nothing of the paper's numbers. " + " ".join(counts)
    )


def _table(chosen: Sequence[Entry], tested: Sequence[Entry]) -> Table:
    made: dict[str, list[Row]] = {}
    for entry in chosen:
        target = f"claim-{tested.index(entry) + 1}"
        row = Row(head=entry.claim.text, cells=_cells(entry), target=target)
        made.setdefault(_title(entry), []).append(row)
    return Table(
        caption=_CAPTION,
        corner="Claim",
        columns=_COLUMNS,
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
        words=4,
    )


def _title(entry: Entry) -> str:
    if isinstance(entry.claim, PoisonClaim):
        return f"{_PAPERS['poison']}: poisoning"
    return f"{_PAPERS['model']}, on {entry.place}"


def _cells(entry: Entry) -> tuple[Cell, ...]:
    claim, outcome = entry.claim, entry.outcome
    compared = Cell(value=claim.quantity, details=(claim.where, f"holds: {claim.holds}"))
    ours = Cell(value=outcome.text, details=outcome.details)
    return compared, _published(entry), ours, _word(outcome.word, outcome.reason)


def _published(entry: Entry) -> Cell:
    if entry.printed is not None and isinstance(entry.claim, Claim):
        where = " and ".join(entry.claim.printed_on)
        said = (f"{entry.printed.word} as printed", *entry.printed.details, where)
        return Cell(value=entry.printed.text, details=said)
    return Cell(value=entry.claim.shows) if entry.claim.shows else MISSING


def _word(word: Word, reason: str = "") -> Cell:
    return Cell(value=word, details=(reason,) if reason else (), tone=TONES[word])


def _comparisons(tested: Sequence[Entry], level: float) -> Iterator[Fold]:
    for number, entry in enumerate(tested, 1):
        where = f" ({entry.place})" if entry.place else ""
        yield Fold(
            name=f"claim-{number}",
            summary=f"{entry.claim.text} {entry.outcome.word.capitalize()}{where}",
            blocks=(_evidence(entry, level),),
        )


def _tests(level: float) -> str:
    return (
        f"Brackets: {level:.0%} interval, Student's over seeds; two cells are paired where they "
        "share seeds. p: Student's t test, two-sided; p (Holm) is corrected for all comparisons of "
        "the claim and decides single ones. The claim fails if a comparison does by p (Holm), and "
        "holds if every one does by its own p. With three seeds t has two degrees of freedom: only "
        "differences several times their spread are seen. Ratios of poisoning come with intervals "
        "by the bootstrap, which decide them. Runs whose evaluation is unreliable are left out."
    )


def _evidence(entry: Entry, level: float) -> Table:
    rows = []
    unit = entry.claim.unit
    for part in entry.outcome.parts:
        ends = part.interval(level)
        shown = f"[{', '.join(claims.value(e, unit) for e in ends)}]" if ends else ""
        p, adjusted = (
            MISSING if p is None or part.ends or part.certain else Cell(value=_number(p))
            for p in (part.p, part.adjusted)
        )
        size = "" if part.certain or part.ends else str(len(part.values))
        cells = (
            Cell(value=claims.value(part.mean, unit), details=(shown,) if shown else ()),
            Cell(value=size) if size else MISSING,
            p,
            adjusted,
            _word(part.word(level)),
        )
        rows.append(Row(head=part.label, cells=cells))
    return Table(
        caption=(
            f"{entry.claim.quantity[0].upper()}{entry.claim.quantity[1:]}. Holds: "
            f"{entry.claim.holds}. The numbers stand in the section '{entry.claim.section}'."
        ),
        corner="Comparison",
        columns=((f"Value ({unit or '1'})",), ("Seeds",), ("p",), ("p (Holm)",), ("Verdict",)),
        groups=(RowGroup(rows=tuple(rows)),),
    )


def _number(p: float) -> str:
    return probability(p).removeprefix("p ").removeprefix("= ")


def _untested(every: Sequence[Entry]) -> list[Entry]:
    """Claims that no tier tests, once each."""
    tested = {entry.claim.name for entry in every if entry.outcome.tested}
    named = {e.claim.name: e for e in every if e.claim.name not in tested}
    missing = [claim for claim in CLAIMS if claim.name not in {e.claim.name for e in every}]
    model = [
        Entry(
            claim=claim,
            outcome=Outcome(
                name=claim.name,
                word="cannot tell",
                text="",
                reason=f"no {claim.needs}",
                tested=False,
            ),
            printed=None,
            place="",
        )
        for claim in missing
    ]
    return [*model, *named.values()]


def _missing(untested: Sequence[Entry]) -> Table:
    made: dict[str, list[Row]] = {}
    for entry in untested:
        paper = _PAPERS["poison" if isinstance(entry.claim, PoisonClaim) else "model"]
        reason = Cell(value=entry.outcome.reason, details=(entry.claim.where,))
        made.setdefault(paper, []).append(Row(head=entry.claim.text, cells=(reason,)))
    return Table(
        caption="Claims that cannot be told for want of runs.",
        corner="Claim",
        columns=(("Why it cannot be told",),),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
        words=1,
    )
