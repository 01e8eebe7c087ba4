"""The linear SSM of the poisoning theory: its responses, its teachers, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher, powers, theorem_teacher


def drawn(seed: int, *shape: int) -> np.ndarray:
    return Noise(seed).normal(*shape, dtype=torch.float64).numpy()


def system(seed: int, *shape: int) -> LinearSSM:
    return LinearSSM(a=drawn(seed, *shape), b=drawn(seed + 1, *shape), c=drawn(seed + 2, *shape))


def stepped(ssm: LinearSSM, x: np.ndarray) -> float:
    """The last output, by the recurrence with the full state matrix."""
    state, matrix = np.zeros(ssm.d_state), np.diag(ssm.a)
    for entry in x:
        state = matrix @ state + ssm.b * entry
    return float(ssm.c @ state)


@given(seed=st.integers(0, 1000), d_state=st.integers(1, 6), length=st.integers(1, 9))
def test_the_last_output_is_that_of_the_recurrence(seed, d_state, length):
    ssm, x = system(seed, d_state), drawn(seed + 3, 4, length)
    expected = [stepped(ssm, row) for row in x]
    np.testing.assert_allclose(ssm.last_output(x), expected, rtol=1e-12, atol=1e-12)


def test_the_impulse_response_is_the_last_output_of_one_hot_sequences():
    ssm = system(0, 5)
    # A 1 at position p of a sequence of length 7 meets lag 7 - p.
    one_hot = np.eye(7)[::-1].copy()
    np.testing.assert_allclose(ssm.impulse_response(7), ssm.last_output(one_hot), rtol=1e-12)


def test_many_systems_at_once_are_each_on_its_own():
    many, x = system(3, 4, 3), drawn(9, 5, 6)
    together = many.last_output(x)
    for run in range(4):
        one = LinearSSM(a=many.a[run], b=many.b[run], c=many.c[run])
        np.testing.assert_allclose(together[run], one.last_output(x), rtol=1e-12)


def test_powers_start_at_one_even_of_zero():
    np.testing.assert_array_equal(
        powers(np.array([0.0, -2.0]), 4), [[1, 1], [0, -2], [0, 4], [0, -8]]
    )


def test_the_theorems_teacher_agrees_with_a_student_of_ones_at_lag_0_and_responds_1_later():
    response = theorem_teacher(10).impulse_response(20)
    np.testing.assert_allclose(response, [10.0] + 19 * [1.0], rtol=1e-12)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: theorem_teacher(2), "more states than its teacher"),
        (lambda: diagonal_teacher(0.9, 1.01), r"entries in \[-1, 1\].*1\.01"),
        (lambda: diagonal_teacher(float("nan")), "entries in"),
        (lambda: diagonal_teacher(), "entries in"),
        (lambda: LinearSSM(a=np.ones(0), b=np.ones(0), c=np.ones(0)), "at least one state"),
    ],
)
def test_what_is_no_teacher_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
