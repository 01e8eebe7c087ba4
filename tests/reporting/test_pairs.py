"""Differences between two rows of flags of the same examples, and whether they are chance."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustssm.reporting import pairs
from tests.reporting.synthetic import first

both = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rows(b, c, agreeing=7):
    """Flags with b examples that only the first, and c that only the second has."""
    one = (True,) * b + (False,) * c + first(3, agreeing)
    two = (False,) * b + (True,) * c + first(3, agreeing)
    return one, two


def test_paired_interval_of_a_published_table():
    # Approval of a prime minister, asked twice: 794 / 150 / 86 / 570; 0.04 with (0.021, 0.059).
    once = (True,) * 944 + (False,) * 656
    twice = (True,) * 794 + (False,) * 150 + (True,) * 86 + (False,) * 570
    low, high = pairs.paired(once, twice)
    assert (round(low, 3), round(high, 3)) == (0.021, 0.059)


@given(both)
def test_paired_interval_turns_with_its_arguments(drawn):
    one, two = zip(*drawn, strict=True)
    low, high = pairs.paired(one, two)
    assert pairs.paired(two, one) == pytest.approx((-high, -low))
    assert -1.0 <= low <= high <= 1.0
    narrow = pairs.paired(one, two, level=0.5)
    assert low <= narrow[0] and narrow[1] <= high


def test_paired_interval_shrinks_to_the_difference():
    low, high = pairs.paired(first(50_000, 100_000), first(40_000, 100_000))
    assert low < 0.1 < high and high - low < 0.004


@pytest.mark.parametrize("b, c", [(0, 1), (1, 1), (0, 9), (3, 12), (12, 3), (40, 41), (200, 260)])
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue
    assert pairs.mcnemar(*rows(b, c)) == pytest.approx(expected, rel=1e-12)


@given(both)
def test_mcnemar_agrees_with_scipy_on_any_flags(drawn):
    one, two = zip(*drawn, strict=True)
    b, c = pairs.discordant(one, two)
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert pairs.mcnemar(one, two) == pytest.approx(expected, rel=1e-12)
    assert pairs.mcnemar(two, one) == pairs.mcnemar(one, two)


def test_mcnemar_of_a_published_table():
    # Approval of a prime minister, asked twice: 150 against 86.
    assert pairs.mcnemar(*rows(150, 86)) == pytest.approx(3.715e-5, rel=1e-3)


def test_mcnemar_of_a_whole_test_set_is_exact_and_no_overflow():
    assert pairs.mcnemar(*rows(5000, 5000)) == 1.0
    assert pairs.mcnemar(*rows(10_000, 0)) == 0.0  # 2^-9999 is below every float
    assert pairs.mcnemar(*rows(1000, 0)) == pytest.approx(2.0**-999)


def test_models_that_agree_are_not_told_apart():
    assert pairs.mcnemar(*rows(0, 0)) == 1.0


def test_holm_of_a_worked_example():
    # 4 x 0.01; 3 x 0.013 is below that; 2 x 0.04; 1 x 0.05 is below that.
    assert pairs.holm([0.04, 0.01, 0.05, 0.013]) == pytest.approx((0.08, 0.04, 0.08, 0.04))


@given(p_values)
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(found):
    adjusted = pairs.holm(found)
    for p, q in zip(found, adjusted, strict=True):
        assert p <= q <= 1
        assert q <= min(1, len(found) * p) or math.isclose(q, min(1, len(found) * p))
    order = sorted(range(len(found)), key=found.__getitem__)
    assert [adjusted[at] for at in order] == sorted(adjusted)
