"""Two rows of flags of the same examples: how far apart they are, and whether that is chance."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from robustssm.records import Flags


def paired(first: Flags, second: Flags, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of two proportions of the same examples, by Agresti and Min.

    With half a count added to each kind of discordant pair, b and c, and n + 2 in all:
    (b - c) / n -+ z sqrt(b + c - (b - c)^2 / n) / n.

    Args:
        first: Flags (n,), n at least 1.
        second: Flags (n,) of the same examples.
        level: Confidence, in (0, 1).

    Source: agresti2005simple, section 2.
    """
    b, c = (count + 0.5 for count in discordant(first, second))
    n = len(first) + 2
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, (b - c) / n - half), min(1.0, (b - c) / n + half)


def mcnemar(first: Flags, second: Flags) -> float:
    """Probability of discordant pairs as uneven as these, or more, if neither were the better.

    McNemar's test in its exact form: of the b + c examples on which the two differ, each is as
    likely to favour one as the other; two-sided, 2 P(X <= min(b, c)), X ~ Binomial(b + c, 1/2).

    Args:
        first: Flags (n,).
        second: Flags (n,) of the same examples.

    Source: mcnemar1947note. Oracle: scipy.stats.binomtest (tests/reporting/test_pairs.py).
    """
    b, c = discordant(first, second)
    term = total = 1  # of the binomial coefficients of b + c over 0, 1, ... min(b, c)
    for k in range(min(b, c)):
        term = term * (b + c - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2 ** (b + c))


def discordant(first: Flags, second: Flags) -> tuple[int, int]:
    """How many examples only `first`, and how many only `second` has."""
    both = list(zip(first, second, strict=True))
    return sum(x and not y for x, y in both), sum(y and not x for x, y in both)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, so that rejecting all below a level errs at all with that probability.

    Holm's step-down form of Bonferroni's: the k-th smallest of m is multiplied by m - k + 1, and
    is no smaller than those before it.

    Args:
        p_values: In any order; those of all tests of the family.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return tuple(adjusted)
