"""Rank correlation: against scipy, exactly for few values, and by its laws."""

import math
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from robustssm.reporting.ranks import interval, p_value, ranks, spearman

values = st.integers(-4, 4).map(float)  # few, so that there are ties


@st.composite
def pairs(draw, least=3, most=14):
    n = draw(st.integers(least, most))
    x, y = (draw(st.lists(values, min_size=n, max_size=n)) for _ in range(2))
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    return x, y


@given(st.lists(values, min_size=1, max_size=12))
def test_ranks_are_those_of_scipy(x):
    assert list(ranks(x)) == list(stats.rankdata(x))


@given(pairs())
def test_the_correlation_is_that_of_scipy(pair):
    assert spearman(*pair) == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)


@given(pairs(least=9))
def test_p_of_many_values_is_that_of_scipy(pair):
    assume(abs(spearman(*pair)) < 1)
    assert p_value(*pair) == pytest.approx(stats.spearmanr(*pair).pvalue, rel=1e-7)


@given(pairs(least=4, most=6))
def test_p_of_few_values_counts_all_orders(pair):
    x, y = pair
    own = abs(spearman(x, y))
    found = [abs(spearman(x, order)) >= own - 1e-12 for order in permutations(y)]
    assert p_value(x, y) == pytest.approx(sum(found) / len(found))


def test_p_is_never_nought():
    assert p_value(range(5), range(5)) == pytest.approx(2 / 120)
    assert p_value(range(12), range(12)) == pytest.approx(2 / math.factorial(12))


@given(pairs(least=5))
def test_only_the_order_counts(pair):
    x, y = pair
    assert spearman([math.exp(v) for v in x], y) == spearman(x, y)
    assert spearman([-v for v in x], y) == pytest.approx(-spearman(x, y), abs=1e-12)


@given(st.floats(-1, 1), st.integers(5, 200))
def test_the_interval_holds_the_correlation_and_shrinks(rho, n):
    low, high = interval(rho, n)
    assert -1 <= low <= rho <= high <= 1 and low < high
    wider, tighter = interval(rho, n, level=0.99), interval(rho, 4 * n)
    assert wider[1] - wider[0] >= high - low >= tighter[1] - tighter[0]
    assert interval(-rho, n) == pytest.approx((-high, -low))


def test_what_is_constant_has_no_correlation_and_infinities_are_largest():
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spearman([1.0, 2.0, math.inf], [1.0, 2.0, 3.0]) == 1.0
