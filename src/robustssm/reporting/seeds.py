"""What several seeds say of a quantity that a claim puts on one side of a number."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from robustssm.reporting.intervals import of_mean, student_tail
from robustssm.reporting.pairs import holm

Word = Literal["holds", "fails", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison of a claim: a value per seed, and the side of `beyond` it is claimed to be on.

    `sign` is 1 where the claim says "above", -1 where it says "below".
    """

    label: str
    values: tuple[float, ...]
    beyond: float = 0.0
    sign: int = 1
    adjusted: float | None = None
    """p of the t test by Holm over the claim's comparisons; None with fewer than two seeds."""
    certain: bool = False
    """Whether the value is no sample: a count, or a printed number."""
    ends: tuple[float, float] | None = None
    """An interval found in another way, by the bootstrap say; it decides in place of the test."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.values)

    @property
    def p(self) -> float | None:
        """Student's t test, two-sided, that the mean is `beyond`; None with one seed."""
        return p_of_mean(self.values, self.beyond)

    def interval(self, level: float) -> tuple[float, float] | None:
        """Student's interval of the mean, or `ends`; None with fewer than two seeds."""
        if self.ends is not None:
            return self.ends
        if self.certain or len(self.values) < 2:
            return None
        return of_mean(self.values, level=level)

    def word(self, level: float, *, alone: bool = False) -> Word:
        """Which side of `beyond` the mean is on, if more than chance puts it there.

        Args:
            level: Confidence, in (0, 1).
            alone: Whether to take p as it is, and not the one by Holm.
        """
        if self.ends is not None:
            low, high = self.ends
            if low <= self.beyond <= high:
                return "cannot tell"
            return "holds" if self.sign * (low - self.beyond) > 0 else "fails"
        p = self.p if alone else self.adjusted
        if not self.certain and (p is None or not p <= 1 - level):
            return "cannot tell"
        return "holds" if self.sign * (self.mean - self.beyond) > 0 else "fails"


def p_of_mean(values: Sequence[float], beyond: float) -> float | None:
    """Student's t test, two-sided, that draws have a given mean; None for fewer than two.

    Oracle: scipy.stats.ttest_1samp (tests/reporting/test_seeds.py).
    """
    if len(values) < 2 or not all(math.isfinite(v) for v in values):
        return None
    off, spread = mean(values) - beyond, stdev(values)
    if spread == 0:
        return 1.0 if off == 0 else 0.0
    return student_tail(off / (spread / math.sqrt(len(values))), len(values) - 1)


def corrected(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same comparisons with their p adjusted by Holm, for all of them together."""
    tested = [(at, p) for at, part in enumerate(parts) if (p := part.p) is not None]
    adjusted = dict(zip((at for at, _ in tested), holm([p for _, p in tested]), strict=True))
    return tuple(
        dataclasses.replace(part, adjusted=adjusted.get(at)) for at, part in enumerate(parts)
    )


def together(parts: Sequence[Part], level: float) -> Word:
    """The verdict on a claim that says something of every one of its comparisons.

    It fails if one comparison fails, and one of many may do so by chance: p by Holm. It holds if
    every single one holds, which chance does not do more easily for there being many: plain p.
    """
    if any(part.word(level) == "fails" for part in parts):
        return "fails"
    every = parts and all(part.word(level, alone=True) == "holds" for part in parts)
    return "holds" if every else "cannot tell"


def average(parts: Sequence[Part]) -> Part | None:
    """The mean over the comparisons, seed by seed; None if they have not the same seeds."""
    sizes = {len(part.values) for part in parts}
    if len(parts) < 2 or len(sizes) > 1 or any(p.certain or p.ends for p in parts):
        return None
    rows = zip(*(part.values for part in parts), strict=True)
    return Part(label="on average", values=tuple(mean(row) for row in rows), sign=parts[0].sign)
