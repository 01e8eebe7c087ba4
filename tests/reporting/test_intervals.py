"""Intervals of differences and means: against scipy, by their laws, and by their coverage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustssm.reporting.intervals import newcombe, of_mean, student_quantile, student_tail


@st.composite
def counts(draw):
    n = draw(st.integers(1, 400))
    return draw(st.integers(0, n)), n


def test_newcombe_gives_the_published_example():
    low, high = newcombe(56, 70, 48, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


@given(counts(), counts())
def test_newcombe_holds_the_difference_and_turns_round_with_it(first, second):
    low, high = newcombe(*first, *second)
    assert -1 <= low <= first[0] / first[1] - second[0] / second[1] <= high <= 1
    assert newcombe(*second, *first) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("p, q", [(0.5, 0.5), (0.3, 0.6), (0.95, 0.8)])
def test_newcombe_covers_what_it_says(p, q):
    """Exact, over all outcomes; a Wald interval has 0.88 and less at the third."""
    m, n = 30, 20
    covered = sum(
        stats.binom.pmf(a, m, p) * stats.binom.pmf(b, n, q)
        for a in range(m + 1)
        for b in range(n + 1)
        if (ends := newcombe(a, m, b, n)) and ends[0] <= p - q <= ends[1]
    )
    assert 0.93 < covered < 0.99


@given(st.floats(-60, 60), st.integers(1, 300))
def test_the_tail_is_that_of_scipy(t, df):
    assert student_tail(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-9, abs=1e-300)


@given(st.floats(0.001, 0.999), st.integers(1, 100))
def test_the_quantile_is_that_of_scipy(p, df):
    assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-8, abs=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_the_interval_of_a_mean_is_that_of_scipy(values, level):
    low, high = of_mean(values, level=level)
    spread = stats.sem(values)
    if math.isclose(spread, 0, abs_tol=1e-12):
        assert high - low == pytest.approx(0, abs=1e-9)
    else:
        centre = sum(values) / len(values)
        wanted = stats.t.interval(level, len(values) - 1, loc=centre, scale=spread)
        assert (low, high) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="two or more; got 1"):
        of_mean([0.5])
