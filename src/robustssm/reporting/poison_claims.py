"""Claims on poisoning with clean labels, each with the comparison that decides it.

Source: slutzky2024implicit; the means of its experiments are kept in `poison_names.PUBLISHED`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from robustssm.records.brewing import BrewingResult
from robustssm.records.poisoning import Contrast, PoisonResult
from robustssm.reporting import poison_names as said
from robustssm.reporting import seeds
from robustssm.reporting.claims import Outcome, summed_up
from robustssm.reporting.poison_tables import control
from robustssm.reporting.runs import Runs
from robustssm.reporting.seeds import Part

EXACT = 1.0
"""Percent by which a mean of the theorem's setting, whose seeds are known, may be off."""
PLACEBO = 2.0
"""Ratio below which further ordinary sequences are said to change nothing."""
_VERBS = {"brewing": "brew"}
Results = Sequence[PoisonResult]


@dataclass(frozen=True, kw_only=True)
class PoisonClaim:
    """One claim of the paper, or a control that it lacks."""

    name: str
    where: str
    text: str
    quantity: str
    holds: str
    study: str
    """Which study tests it: "theory", "beyond", "network" or "brewing"."""
    parts: Callable[[Results], Iterator[Part]]
    unit: str = "\N{MULTIPLICATION SIGN}"
    shows: str = ""
    section: str = "poisoning"

    @property
    def needs(self) -> str:
        """What must have been run."""
        return f"results of `robustssm poison {_VERBS.get(self.study, self.study)}`"


def judge(claim: PoisonClaim, runs: Runs, *, level: float) -> Outcome:
    """The claim on the studies of a report.

    Args:
        claim: What is claimed.
        runs: With studies.
        level: Confidence, in (0, 1), of tests over seeds; contrasts keep their own intervals.
    """
    if claim.study == "brewing":
        brewed = [s.result for s in runs.studies if isinstance(s.result, BrewingResult)]
        found = tuple(_brewed(brewed, "clean" if claim.name == "real-world" else ""))
    else:
        results = [s.result for s in runs.studies if isinstance(s.result, PoisonResult)]
        found = tuple(claim.parts([r for r in results if r.study == claim.study]))
    return summed_up(claim.name, seeds.corrected(found), claim.unit, claim.needs, level=level)


def _ratios(above: str, below: str, *, stop: bool, **more: float) -> Callable[..., Iterator[Part]]:
    """Ratios of medians with their intervals, where the arms stopped or at equal training loss."""

    def parts(results: Results) -> Iterator[Part]:
        for result in results:
            for each in result.contrasts:
                if (each.above, each.below) == (above, below) and (each.place == "stop") == stop:
                    yield from _ratio(result, each, **more)

    return parts


def _untied(results: Results) -> Iterator[Part]:
    for result in results:
        found = control(result)
        yield from _ratio(result, found) if found else ()


def _ratio(
    result: PoisonResult, each: Contrast, *, beyond: float = 1.0, sign: float = 1.0
) -> Iterator[Part]:
    if each.ratio is not None and each.low is not None and each.high is not None:
        place = "" if each.place == "stop" else f", train MSE {each.place}"
        yield Part(
            label=f"length {result.length}{place}",
            values=(each.ratio,),
            beyond=beyond,
            sign=int(sign),
            ends=(each.low, each.high),
        )


def _means(results: Results) -> Iterator[Part]:
    for result, condition, ours, printed in _printed(results):
        off = 100 * abs(ours / printed - 1)
        label = f"length {result.length}, {condition}"
        yield Part(label=label, values=(off,), beyond=EXACT, sign=-1, certain=True)


def _within(results: Results) -> Iterator[Part]:
    for result, condition, _, printed in _printed(results):
        errors = [run.error[str(result.horizon)] for run in result.of(condition)]
        below = sum(error < printed for error in errors)
        rarer = 100 * min(below, len(errors) - below) / len(errors)
        label = f"length {result.length}, {condition}"
        yield Part(label=label, values=(rarer,), certain=True)


def _printed(results: Results) -> Iterator[tuple[PoisonResult, str, float, float]]:
    for result in results:
        for summary in result.summaries:
            printed = said.published(result, summary.condition)
            if printed is not None:
                yield result, summary.condition, summary.mean, printed


def _ranks(results: Results) -> Iterator[Part]:
    for result in results:
        ranks = [
            {run.seed: run.effective_rank for run in result.of(condition)}
            for condition in ("special", "ordinary")
        ]
        shared = sorted(set(ranks[0]) & set(ranks[1]))
        if shared:
            gaps = tuple(ranks[0][seed] - ranks[1][seed] for seed in shared)
            yield Part(label=f"length {result.length}", values=gaps)


def _brewed(results: Sequence[BrewingResult], only: str) -> Iterator[Part]:
    for number, result in enumerate(results, 1):
        for each in result.differences:
            wanted = each.control == only if only else each.control in ("noise", "duplicated")
            if each.measure == "accuracy" and wanted:
                name = _structure(result) or f"study {number}"
                values = tuple(100 * value for value in each.differences)
                yield Part(label=f"{name}, against {each.control}", values=values, sign=-1)


def _structure(result: BrewingResult) -> str:
    value = result.settings.get("structure")
    return value if isinstance(value, str) else ""


def _nothing(results: Results) -> Iterator[Part]:
    yield from ()


def _kinds(kind: str, where: str, what: str) -> tuple[PoisonClaim, ...]:
    """What is claimed alike of the setting beyond the theorem and of networks."""
    printed = {k: v for k, v in said.PUBLISHED.items() if k[0] == kind}
    return (
        PoisonClaim(
            name=f"{kind}-effect",
            where=where,
            text=f"Special sequences ruin generalisation {what}.",
            quantity="median error, special over ordinary, where each arm stopped",
            holds="interval above 1 at every length",
            study=kind,
            parts=_ratios("special", "ordinary", stop=True),
            shows="; ".join(
                f"length {n}: {v['special'] / v['ordinary']:.3g}× (means)"
                for (_, n), v in printed.items()
            ),
        ),
        PoisonClaim(
            name=f"{kind}-matched",
            where="a control that the paper lacks",
            text=f"They do so {what} at equal training loss too.",
            quantity="median error, special over ordinary, at equal training loss",
            holds="interval above 1 at every length and loss",
            study=kind,
            parts=_ratios("special", "ordinary", stop=False),
        ),
        PoisonClaim(
            name=f"{kind}-placebo",
            where="a control of the paper's design",
            text=f"It is not the number of sequences {what}.",
            quantity="median error, with as many more ordinary sequences over without",
            holds=f"interval below {PLACEBO:g} at every length",
            study=kind,
            parts=_ratios("placebo", "ordinary", stop=True, beyond=PLACEBO, sign=-1),
        ),
        PoisonClaim(
            name=f"{kind}-numbers",
            where=where,
            text=f"The mean errors {what} can be found again.",
            quantity="share of our seeds on the rarer side of the published mean",
            holds="above 0: the published mean is inside the range of our seeds",
            study=kind,
            parts=_within,
            unit="%",
            shows=_listed(printed),
        ),
    )


def _listed(printed: Iterable[tuple[str, int]]) -> str:
    return "; ".join(
        f"length {length}: {', '.join(f'{v:.3g}' for v in said.PUBLISHED[kind, length].values())}"
        for kind, length in printed
    )


_THEORY = {key: value for key, value in said.PUBLISHED.items() if key[0] == "theory"}
CLAIMS: tuple[PoisonClaim, ...] = (
    PoisonClaim(
        name="theory-numbers",
        where="section 4.1",
        text="The mean errors in the setting of Theorem 1 can be found again.",
        quantity="mean error of the published seeds, off the published mean by",
        holds=f"below {EXACT:g} % for both lengths, with and without special sequences",
        study="theory",
        parts=_means,
        unit="%",
        shows=_listed(_THEORY),
    ),
    PoisonClaim(
        name="theory-effect",
        where="theorem 1, section 4.1",
        text="One special sequence ruins generalisation in the setting of Theorem 1.",
        quantity="median error, special over ordinary",
        holds="interval above 1 at both lengths",
        study="theory",
        parts=_ratios("special", "ordinary", stop=True),
        shows="; ".join(
            f"length {n}: {v['special'] / v['ordinary']:.3g}× (means)"
            for (_, n), v in _THEORY.items()
        ),
    ),
    PoisonClaim(
        name="theory-untied",
        where="a control that the paper lacks",
        text="It does so from a plain random start too, without two nearly equal entries.",
        quantity="median error, special over ordinary, from a plain random start",
        holds="interval above 1 at both lengths",
        study="theory",
        parts=_untied,
    ),
    PoisonClaim(
        name="theory-rank",
        where="section 4.1",
        text="Ordinary sequences lead to few states, special ones to many.",
        quantity="effective rank, special minus ordinary, paired over seeds",
        holds="above 0 at both lengths",
        study="theory",
        parts=_ranks,
        unit="",
    ),
    *_kinds("beyond", "section 4.1", "beyond the theorem, with all parameters trained"),
    *_kinds("network", "section 4.1", "in networks"),
    PoisonClaim(
        name="real-world",
        where="section 4.2, table 2",
        text="Poisoned examples with clean labels lower the test accuracy of trained classifiers.",
        quantity="accuracy on test examples that are no targets, poisoned minus clean",
        holds="below 0 for every structure",
        study="brewing",
        parts=_nothing,
        unit="points",
        section="brewing",
    ),
    PoisonClaim(
        name="real-world-controls",
        where="a control that the paper lacks",
        text="They lower it more than random noise and mere duplication do.",
        quantity="the same, poisoned minus noise, and minus duplicated",
        holds="below 0 for every structure and control",
        study="brewing",
        parts=_nothing,
        unit="points",
        section="brewing",
    ),
)
