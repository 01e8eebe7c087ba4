"""What a claim of a paper is, how it is put to a test, and what came of it.

Whether robustness claims of the two papers hold: `model_claims.py`, `poison_claims.py` and
`printed_claims.py` state them, `ledger.py` shows them. docs/claims.md says how to add one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from robustssm.reporting import seeds
from robustssm.reporting.evidence import Measured, Printed, Source
from robustssm.reporting.probes import digits
from robustssm.reporting.seeds import Part, Word

PLURAL: dict[Word, str] = {
    "holds": "hold",
    "fails": "fail",
    "cannot tell": "cannot be told",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper, in our words, and the quantity that decides it."""

    name: str
    """Letters, digits and dashes; unique."""
    where: str
    """Section, table or figure."""
    text: str
    quantity: str
    """What is compared."""
    holds: str
    """What "holds" means, in numbers."""
    parts: Callable[[Source], Iterable[Part]]
    """All comparisons that a source allows; the claim is about every one of them."""
    needs: str
    """What runs must have been made."""
    section: str = "accuracy"
    """Of the report, where the numbers stand."""
    unit: str = "points"
    printed_on: tuple[str, ...] = ("MNIST", "CIFAR-10")
    """Data sets whose printed rows the claim is about."""
    shows: str = ""
    """A published number of the prose or a figure that is in no table, with its source."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a claim."""

    name: str
    word: Word
    text: str
    """The values in short."""
    details: tuple[str, ...] = ()
    reason: str = ""
    """Why it cannot be told."""
    parts: tuple[Part, ...] = ()
    tested: bool = field(default=True)
    """Whether anything was there to test it on."""


def judge(claim: Claim, source: Source, *, level: float) -> Outcome:
    """The claim on one source of numbers.

    Over several seeds every comparison is Student's t test over seeds, paired where two cells
    share seeds, with p by Holm over the comparisons of the claim.

    Args:
        claim: What is claimed.
        source: Runs of one section and tier, or printed tables.
        level: Confidence of intervals; a comparison is decided where its p is at most 1 - level.
    """
    parts = seeds.corrected(tuple(claim.parts(source)))
    needs = claim.needs
    if isinstance(source, Measured) and source.unreliable:
        needs += " whose evaluation can be believed"
    return summed_up(claim.name, parts, claim.unit, needs, level=level)


def summed_up(name: str, parts: Sequence[Part], unit: str, needs: str, *, level: float) -> Outcome:
    """What comparisons say together.

    Args:
        name: Of the claim.
        parts: Its comparisons, with p corrected for all of them; may be none.
        unit: Of their values.
        needs: What must be there to make one.
        level: Confidence, in (0, 1).
    """
    if not parts:
        return Outcome(name=name, word="cannot tell", text="", reason=f"no {needs}", tested=False)
    word = seeds.together(parts, level)
    return Outcome(
        name=name,
        word=word,
        text=_values(parts, unit),
        details=_counted(parts, unit, level),
        reason=_why(parts, level) if word == "cannot tell" else "",
        parts=tuple(parts),
    )


def printed(claim: Claim, *, level: float) -> Outcome | None:
    """The claim on the printed tables that it is about; None if they do not have the numbers."""
    parts = tuple(
        Part(
            label=f"{dataset}: {part.label}",
            values=part.values,
            beyond=part.beyond,
            sign=part.sign,
            certain=True,
        )
        for dataset in claim.printed_on
        for part in claim.parts(Printed(dataset))
    )
    if not parts:
        return None
    return summed_up(claim.name, parts, claim.unit, claim.needs, level=level)


def value(number: float, unit: str) -> str:
    """A value of a claim with its sign: one decimal for points and percent, else three digits."""
    if unit in ("points", "%"):
        text = f"{number:+,.1f}" if abs(number) < 1000 else f"{number:+,.0f}"
        return text.replace("-", "\N{MINUS SIGN}")
    return digits(number, 3)


def _values(parts: Sequence[Part], unit: str) -> str:
    means = [part.mean for part in parts]
    suffix = "" if unit in ("", "points") else f"\N{NO-BREAK SPACE}{unit}"
    if len(means) == 1:
        return f"{value(means[0], unit)}{suffix}"
    return f"{value(min(means), unit)} to {value(max(means), unit)}{suffix}"


def _counted(parts: Sequence[Part], unit: str, level: float) -> tuple[str, ...]:
    words = [part.word(level) for part in parts]
    said = [f"{words.count(w)} {PLURAL[w]}" for w in PLURAL if w in words]
    details = (f"of {len(parts)}: {', '.join(said)}",) if len(parts) > 1 else ()
    if all(part.certain or part.ends is not None for part in parts):
        return details
    mean = seeds.average(parts)
    ends = mean.interval(level) if mean else None
    if mean and ends:
        low, high = (value(end, unit) for end in ends)
        details += (f"on average {value(mean.mean, unit)} [{low}, {high}]",)
    return (*details, _sizes(parts))


def _sizes(parts: Sequence[Part]) -> str:
    sizes = sorted({len(part.values) for part in parts})
    span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{span} seed{'' if sizes == [1] else 's'}"


def _why(parts: Sequence[Part], level: float) -> str:
    open_parts = [part for part in parts if part.word(level) == "cannot tell"]
    alone = sum(len(part.values) < 2 and part.ends is None for part in open_parts)
    if alone == len(parts):
        return "one seed"
    reasons = [f"{alone} with one seed"] if alone else []
    if len(open_parts) > alone:
        reasons.append(
            "the interval does not exclude chance"
            if len(parts) == 1
            else f"chance is not excluded in {len(open_parts) - alone}"
        )
    return "; ".join(reasons)
