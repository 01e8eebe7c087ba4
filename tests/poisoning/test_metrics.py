"""Errors, ranks and intervals against what they are in simple cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import linalg

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher, theorem_teacher
from robustssm.poisoning.metrics import (
    bootstrap,
    bootstrap_ratio,
    contribution_rank,
    effective_rank,
    generalisation_error,
    hankel_singular_values,
)

weights = arrays(np.float64, st.integers(1, 8), elements=st.floats(-10, 10, width=32))


def ones(*a: float) -> LinearSSM:
    return LinearSSM(a=np.array(a), b=np.ones(len(a)), c=np.ones(len(a)))


@given(w=weights.filter(lambda w: np.abs(w).max() > 1e-3), factor=st.floats(0.1, 10))
def test_effective_rank_lies_between_1_and_the_size_and_has_no_unit(w, factor):
    rank = float(effective_rank(w))
    assert 1 - 1e-12 <= rank <= len(w) + 1e-9
    assert math.isclose(rank, float(effective_rank(-factor * w)), rel_tol=1e-9)


@pytest.mark.parametrize(
    "w, rank", [((1.0, 0, 0), 1), ((2.0, -2.0, 2.0), 3), ((0.0, 0.0), 1), ((1.0, 1.0, 0.0), 2)]
)
def test_effective_rank_counts_equal_entries(w, rank):
    assert math.isclose(float(effective_rank(np.array(w))), rank, rel_tol=1e-12)


def test_contribution_rank_leaves_out_states_that_do_not_reach_the_output():
    hidden = LinearSSM(a=np.array([1.0, 0.9, 0.9]), b=np.ones(3), c=np.array([1.0, 0.0, 0.0]))
    assert float(effective_rank(hidden.a)) > 2.9
    assert math.isclose(float(contribution_rank(hidden, lags=6)), 1)
    # The teacher of the theorem has a second state at a = 0, which reaches lag 0 alone.
    assert math.isclose(float(contribution_rank(theorem_teacher(10), lags=7)), 1)


def test_hankel_singular_values_are_those_of_the_matrix_and_count_the_states():
    ssm = diagonal_teacher(0.9, 0.5, -0.7)
    found = hankel_singular_values(ssm, lags=12)
    h = ssm.impulse_response(12)
    expected = linalg.svdvals(linalg.hankel(h[1:7], h[6:12]))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found > 1e-10).sum() == 3


def test_the_zero_predictor_scores_1_and_the_teacher_0():
    teacher = theorem_teacher(10)
    nothing = LinearSSM(a=np.zeros(10), b=np.zeros(10), c=np.zeros(10))
    assert generalisation_error(nothing, teacher, horizon=20) == 1
    assert generalisation_error(teacher, teacher, horizon=20) == 0


def test_the_error_is_relative_to_the_largest_response():
    # A student of ones with a = (1, 0.5, 0, ...) errs by 0.5 at lag 1, where lag 0 responds 4.
    student = ones(1.0, 0.5, 0.0, 0.0)
    assert math.isclose(generalisation_error(student, theorem_teacher(4), horizon=20), 0.5 / 4)
    apart = generalisation_error(student, theorem_teacher(4), horizon=20, first=1)
    assert math.isclose(apart, 0.5)


def test_a_student_that_explodes_has_an_infinite_error():
    assert generalisation_error(ones(1e20, -1e20), diagonal_teacher(1.0), horizon=40) == math.inf


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.integers(0, 50))
def test_an_interval_lies_within_the_values(values, seed):
    array = np.array(values)
    low, high = bootstrap(array, noise=Noise(seed), draws=50)
    assert array.min() <= low <= high <= array.max()


def test_an_interval_of_the_median_covers_it_about_as_often_as_it_says():
    samples = Noise(1).normal(200, 15, dtype=torch.float64).numpy()
    ends = [bootstrap(row, noise=Noise(i), draws=400) for i, row in enumerate(samples)]
    covered = np.mean([low <= 0 <= high for low, high in ends])
    assert 0.88 <= covered <= 1


def test_infinite_errors_make_infinite_ends_and_no_nan():
    low, high = bootstrap(np.array([1.0, math.inf, math.inf]), noise=Noise(0))
    assert low == 1 and high == math.inf
    low, high = bootstrap_ratio(
        np.array([math.inf, 1.0]), np.array([math.inf, 1.0]), noise=Noise(0)
    )
    assert not math.isnan(low) and not math.isnan(high)


def test_a_ratio_of_medians_has_the_ratios_of_its_ends():
    low, high = bootstrap_ratio(np.array([4.0, 4.0]), np.array([1.0, 2.0]), noise=Noise(0))
    assert (low, high) == (2.0, 4.0)
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap_ratio(np.array([]), np.array([1.0]), noise=Noise(0))
