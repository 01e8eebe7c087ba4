"""Rank correlation of two short lists, with its interval and its p-value."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from statistics import NormalDist

from robustssm.reporting.intervals import student_tail

_EXACT = 8  # values up to which every order is looked at: 40,320


def ranks(values: Sequence[float]) -> tuple[float, ...]:
    """Place of each value from 1 upwards; equal values share the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for at in order[start : end + 1]:
            found[at] = (start + end) / 2 + 1
        start = end + 1
    return tuple(found)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of the ranks, in [-1, 1]; None if the values of either are all the same.

    Args:
        x: Values (n,), not NaN; infinities are the largest.
        y: Values (n,).

    Oracle: scipy.stats.spearmanr (tests/reporting/test_ranks.py).
    """
    first, second = ranks(x), ranks(y)
    centre = (len(first) + 1) / 2
    a, b = [r - centre for r in first], [r - centre for r in second]
    norms = math.fsum(v * v for v in a) * math.fsum(v * v for v in b)
    if norms == 0:
        return None
    rho = math.fsum(u * v for u, v in zip(a, b, strict=True)) / math.sqrt(norms)
    return max(-1.0, min(1.0, rho))


def interval(rho: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rank correlation by Fisher's z, with the variance of Bonett and Wright.

    tanh(atanh(rho) -+ z sqrt((1 + rho^2 / 2) / (n - 3))); wide for few values, and rough for
    |rho| above 0.95.

    Args:
        rho: Rank correlation.
        n: Number of values, above 3.
        level: Confidence, in (0, 1).

    Source: bonett2000sample.
    """
    nearest = 1 - 6 / (n * (n * n - 1))  # to one, that n different values could have had
    if abs(rho) > nearest:  # one, up to rounding, where z is infinite
        low, high = interval(math.copysign(nearest, rho), n, level=level)
        return (low, 1.0) if rho > 0 else (-1.0, high)
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def p_value(x: Sequence[float], y: Sequence[float]) -> float:
    """Two-sided probability of a rank correlation as large, if neither had to do with the other.

    Exact over all orders for up to 8 values, else by Student's t with n - 2 degrees of freedom,
    t = rho sqrt((n - 2) / (1 - rho^2)).

    Args:
        x: Values (n,), not all the same.
        y: Values (n,), not all the same.
    """
    rho, n = spearman(x, y), len(x)
    assert rho is not None, "values that are all the same have no correlation"
    if n <= _EXACT:
        first, second = _doubled(x), _doubled(y)
        own = abs(n * sum(a * b for a, b in zip(first, second, strict=True)) - _centre(first) ** 2)
        sizes = _sizes(tuple(sorted(first)), tuple(sorted(second)))
        return sum(size >= own for size in sizes) / len(sizes)
    if abs(rho) == 1:  # of all orders, this one and its reverse
        return 2 / math.factorial(n)
    return student_tail(rho * math.sqrt((n - 2) / (1 - rho * rho)), n - 2)


def _doubled(values: Sequence[float]) -> tuple[int, ...]:
    """Twice the ranks, which are whole numbers: sums of them are exact."""
    return tuple(round(2 * rank) for rank in ranks(values))


def _centre(doubled: Sequence[int]) -> int:
    return sum(doubled)  # of n values it is n (n + 1), whichever they are


@lru_cache(maxsize=256)
def _sizes(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """How far from its mean the sum of products is, for every order of the second ranks."""
    mean = _centre(first) ** 2
    return tuple(
        abs(len(first) * sum(a * b for a, b in zip(first, order, strict=True)) - mean)
        for order in permutations(second)
    )
