"""Intervals for differences of proportions of other examples, and for means over seeds."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from robustssm.core.errors import violation
from robustssm.records import wilson

_TINY = 1e-300


def newcombe(a: int, m: int, b: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a / m - b / n, two proportions of different examples.

    With (l, u) the Wilson interval of each and d the difference:
    d - sqrt((p_a - l_a)^2 + (u_b - p_b)^2) to d + sqrt((u_a - p_a)^2 + (p_b - l_b)^2).

    Args:
        a: Successes in the first sample, 0 to m.
        m: Size of the first sample, at least 1.
        b: Successes in the second sample, 0 to n.
        n: Size of the second sample, at least 1.
        level: Confidence, in (0, 1).

    Source: newcombe1998interval, method 10, the hybrid score interval.
    """
    low_a, high_a = wilson(a, m, level=level)
    low_b, high_b = wilson(b, n, level=level)
    p, q = a / m, b / n
    return (
        max(-1.0, p - q - math.hypot(p - low_a, high_b - q)),
        min(1.0, p - q + math.hypot(high_a - p, q - low_b)),
    )


def of_mean(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean: mean -+ t stdev / sqrt(n), for draws close to normal.

    Args:
        values: At least two.
        level: Confidence, in (0, 1).

    Raises:
        ValueError: If there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(violation("An interval over seeds", "be of two or more", len(values)))
    half = student_quantile(0.5 + level / 2, len(values) - 1) * stdev(values)
    centre = mean(values)
    return centre - half / math.sqrt(len(values)), centre + half / math.sqrt(len(values))


def student_tail(t: float, df: float) -> float:
    """Probability that Student's t exceeds |t| in size, either way: I_{df/(df+t^2)}(df/2, 1/2).

    Args:
        t: Any number.
        df: Degrees of freedom, above 0.

    Oracle: scipy.stats.t (tests/reporting/test_intervals.py), relative error below 1e-9.
    """
    square = t * t
    return _beta(df / (df + square), square / (df + square), df / 2, 0.5)


def student_quantile(p: float, df: float) -> float:
    """The t below which Student's variable falls with probability p, by bisection.

    Args:
        p: In (0, 1).
        df: Degrees of freedom, at least 1.
    """
    if p < 0.5:
        return -student_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while student_tail(high, df) > 2 * (1 - p):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_tail(middle, df) > 2 * (1 - p):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction; rest = 1 - x.

    The rest is given, as the difference would have lost its digits where x is close to 1.
    """
    if x <= 0 or rest <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored one converges faster
        return 1 - _beta(rest, x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log(rest)) / a
    # Lentz's method for 1 + d1 / (1 + d2 / (1 + ...)), by which the front is divided.
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _nonzero(1 + term * d)
        c = _nonzero(1 + term / c)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front / fraction


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
