"""Two runs against each other, example by example: what differs in them, and what in the outcome.

from robustssm.reporting.contrast import contrast
from robustssm.reporting.matching import match, read_runs
[pair] = match(read_runs(Path("runs/a")), read_runs(Path("runs/b"))).pairs
contrast(*pair).lines
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from robustssm.core.errors import unknown
from robustssm.records import EvaluationResult, Flags
from robustssm.reporting import verdicts
from robustssm.reporting.cells import CLEAN, WORST
from robustssm.reporting.comparable import Apart, apart, refuse_others, shared
from robustssm.reporting.intervals import of_mean
from robustssm.reporting.pairs import discordant, holm, mcnemar, paired
from robustssm.reporting.runs import Run

SEEDS = 3
"""Fewer differences than this get no interval over seeds."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One accuracy of A and of B on the same examples."""

    metric: str
    """`CLEAN`, `WORST` or the label of an attack."""
    n: int
    first: float
    """Share of examples on which A is right."""
    second: float
    interval: tuple[float, float]
    """Of A minus B, over examples (agresti2005simple)."""
    only_first: int
    """Examples on which A is right and B is wrong."""
    only_second: int
    p: float
    """McNemar's exact test, two-sided."""
    p_holm: float
    """Corrected for all metrics of the two runs."""

    @property
    def difference(self) -> float:
        """A minus B."""
        return self.first - self.second


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two runs, what differs in their settings, and their accuracies side by side."""

    first: Run
    second: Run
    checkpoint: str
    level: float
    settings: Apart
    """Dotted setting, its value in A, its value in B; "none" where there is none."""
    lines: tuple[Line, ...]
    remarks: tuple[str, ...] = ()
    """What could not be compared, and which numbers are in doubt."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "a": self.first.name,
            "b": self.second.name,
            "seed": self.first.seed if self.first.seed == self.second.seed else None,
            "checkpoint": self.checkpoint,
            "level": self.level,
            "settings": [dict(zip(("setting", "a", "b"), s, strict=True)) for s in self.settings],
            "metrics": [asdict(line) | {"difference": line.difference} for line in self.lines],
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The difference A minus B of one metric in several pairs of runs of equal seeds."""

    metric: str
    differences: tuple[float, ...]
    interval: tuple[float, float] | None
    """Student's over seeds; None for fewer than `SEEDS`."""

    @property
    def mean(self) -> float:
        """Mean difference."""
        return mean(self.differences)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return stdev(self.differences) if len(self.differences) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"mean": self.mean, "spread": self.spread}


def contrast(
    first: Run,
    second: Run,
    *,
    checkpoint: str = "best",
    attack: str | None = None,
    level: float = 0.95,
) -> Contrast:
    """Compares two runs on the same test examples, under the same threat and attacks.

    Args:
        first: A.
        second: B.
        checkpoint: "best" or "last".
        attack: Label of the only attack to compare; None for all that both have, and the worst
            case over them.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        ValueError: If the runs cannot be compared; says why.
    """
    one, two = _result(first, checkpoint, "A"), _result(second, checkpoint, "B")
    refuse_others(first, second, one, two)
    labels, remarks = shared(first, second, one, two, attack)
    rows = {CLEAN: (one.clean, two.clean)}
    rows |= {label: (one.survived[label], two.survived[label]) for label in labels}
    if attack is None and labels:
        rows[WORST] = (_worst(one, labels), _worst(two, labels))
        if labels != list(one.survived) or len(labels) < len(two.survived):
            remarks.append("The worst case is that over the attacks compared here.")
    corrected = holm([mcnemar(a, b) for a, b in rows.values()])
    for run, result in ((first, one), (second, two)):
        if (word := verdicts.verdict(result)) != "reliable":
            remarks.append(f"The numbers of {run.name} are {word}: {verdicts.meaning(result)}.")
    return Contrast(
        first=first,
        second=second,
        checkpoint=checkpoint,
        level=level,
        settings=apart(first.experiment, second.experiment),
        lines=tuple(
            _line(metric, a, b, p_holm, level)
            for (metric, (a, b)), p_holm in zip(rows.items(), corrected, strict=True)
        ),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def over_seeds(contrasts: Sequence[Contrast], *, level: float = 0.95) -> tuple[OverSeeds, ...]:
    """Mean difference of every metric that all contrasts have, with its spread over seeds.

    Args:
        contrasts: Of runs that differ in their seed alone on either side.
        level: Confidence of the interval, in (0, 1).
    """
    tables = [{line.metric: line.difference for line in each.lines} for each in contrasts]
    made = []
    for metric in tables[0]:
        if all(metric in table for table in tables):
            values = tuple(table[metric] for table in tables)
            interval = of_mean(values, level=level) if len(values) >= SEEDS else None
            made.append(OverSeeds(metric=metric, differences=values, interval=interval))
    return tuple(made)


def _result(run: Run, checkpoint: str, which: str) -> EvaluationResult:
    if checkpoint not in run.checkpoints:
        raise ValueError(
            unknown(f"checkpoint of {which} ({run.name})", checkpoint, run.checkpoints)
        )
    return run.checkpoints[checkpoint].result


def _worst(result: EvaluationResult, labels: Sequence[str]) -> Flags:
    rows = (result.clean, *(result.survived[label] for label in labels))
    return tuple(all(row) for row in zip(*rows, strict=True))


def _line(metric: str, a: Flags, b: Flags, p_holm: float, level: float) -> Line:
    only_first, only_second = discordant(a, b)
    return Line(
        metric=metric,
        n=len(a),
        first=sum(a) / len(a),
        second=sum(b) / len(b),
        interval=paired(a, b, level=level),
        only_first=only_first,
        only_second=only_second,
        p=mcnemar(a, b),
        p_holm=p_holm,
    )
