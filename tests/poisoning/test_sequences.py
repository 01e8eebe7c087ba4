"""Training sequences: where they have something, what labels they get, what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher
from robustssm.poisoning.sequences import (
    Sequences,
    at_positions,
    dense,
    from_rows,
    impulse,
    ordinary,
    special,
)


@given(length=st.integers(4, 12), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_entries_stand_where_the_support_says_and_nowhere_else(length, n, seed):
    noise = Noise(seed)
    parts = {
        "ordinary": (ordinary(n, length=length, support=(1, 2), noise=noise), {1, 2}),
        "special": (special(n, length=length, noise=noise), {length - 1}),
        "dense": (dense(n, length=length, noise=noise), set(range(1, length + 1))),
    }
    for name, (made, positions) in parts.items():
        expected = np.isin(np.arange(1, length + 1), list(positions))
        np.testing.assert_array_equal(made.support, np.tile(expected, (n, 1)))
        np.testing.assert_array_equal(made.x != 0, made.support)
        assert made.is_special.all() == (name == "special")


def test_a_set_keeps_its_parts_in_order_and_gets_the_teachers_labels():
    teacher = diagonal_teacher(0.9, 0.5)
    plain = impulse((1, 2.0), length=5)
    poison = impulse((4, 3.0), length=5, is_special=True)
    data = (plain + poison).labelled(teacher)
    np.testing.assert_array_equal(data.is_special, [False, True])
    # Position 1 of 5 meets lag 4, position 4 lag 1.
    np.testing.assert_allclose(data.y, [2 * (0.9**4 + 0.5**4), 3 * (0.9 + 0.5)], rtol=1e-14)
    assert data.excited_lags == (1, 4)


def test_excited_lags_go_by_the_support_and_not_by_the_values():
    made = impulse((1, 1.0), (6, 0.0), length=7)
    assert made.labelled(diagonal_teacher(1.0)).excited_lags == (1, 6)


def test_the_support_is_stored_and_not_shared_with_the_next_draw():
    first = ordinary(2, length=6, support=(1, 2), noise=Noise(0))
    before = first.x.copy()
    ordinary(2, length=6, support=(1, 2), noise=Noise(1))
    np.testing.assert_array_equal(first.x, before)


def test_a_users_rows_become_sequences():
    made = from_rows([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    np.testing.assert_array_equal(made.support, [[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: from_rows([[1.0, 2, 3], [1.0, 2]]), "one length; got 3 .* 2 for number 2.*zeros"),
        (lambda: from_rows([[1.0, 2, 3]]), "at least two sequences"),
        (lambda: from_rows([]), "at least two sequences"),
        (lambda: from_rows([[1.0, 2], [1.0, 2]]), "at least 3.*got 2"),
        (
            lambda: from_rows([[1.0, 2, 3], [1.0, float("nan"), 3]]),
            "got nan at position 2 of sequence 2",
        ),
        (lambda: from_rows([[float("inf"), 2, 3], [1.0, 1, 3]]), "got inf at position 1"),
        (lambda: impulse((1, 1.0), length=2), "at least 3"),
        (lambda: impulse((8, 1.0), length=7), "some of 1, ..., 7; got"),
        (lambda: impulse((0, 1.0), length=7), "some of 1, ..., 7; got"),
        (lambda: at_positions(0, length=6, support=(1,), noise=Noise(0)), "at least 1"),
        (lambda: at_positions(1, length=6, support=(), noise=Noise(0)), "none at all"),
        (
            lambda: ordinary(1, length=6, support=(1, 5), noise=Noise(0)),
            r"positions from 1 to 4.*got \[5\]",
        ),
        (lambda: impulse((1, 1.0), length=6) + impulse((1, 1.0), length=7), "one length"),
    ],
)
def test_bad_sequences_are_refused_in_three_parts(make, text):
    with pytest.raises(ValueError, match=text) as caught:
        make()
    assert "must" in str(caught.value) and "got" in str(caught.value)


def test_an_unstable_teacher_labels_nothing():
    wild = LinearSSM(a=np.array([1.2]), b=np.ones(1), c=np.ones(1))
    with pytest.raises(ValueError, match=r"entries in \[-1, 1\].*got \[1.2\]"):
        impulse((1, 1.0), length=5).labelled(wild)


def test_sequences_that_are_not_finite_cannot_be_built_by_hand_either():
    with pytest.raises(ValueError, match="finite"):
        Sequences(
            x=np.full((2, 3), np.nan), support=np.ones((2, 3), bool), is_special=np.zeros(2, bool)
        )
