"""Starts: the published streams bit for bit, shared and independent layers, tie gaps."""

import numpy as np
import pytest
import torch

from robustssm.core.rng import Noise, published_numpy_stream
from robustssm.poisoning.initialisation import (
    Start,
    head,
    student,
    teacher_head,
    theorem_start,
    tie_gap,
)
from robustssm.poisoning.network import slopes

PUBLISHED = np.random.RandomState(242).rand(10)


def test_the_published_stream_is_numpys_legacy_one():
    np.testing.assert_array_equal(published_numpy_stream(242).random_sample(10), PUBLISHED)
    # The first draws of numpy.random.seed(0); numpy.random.rand(2), as printed in many places.
    first = published_numpy_stream(0).random_sample(2)
    np.testing.assert_allclose(first, [0.5488135039273248, 0.7151893663724195], rtol=1e-15)


def test_the_theorems_start_is_sorted_with_the_second_entry_tied_to_the_first():
    a = theorem_start(242, d_state=10, scale=1e-3, gap=1.5e-8)
    expected = np.sort(1e-3 * PUBLISHED)[::-1]
    np.testing.assert_array_equal(np.delete(a, 1), np.delete(expected, 1))
    assert a[1] == a[0] - 1.5e-8
    untied = theorem_start(242, d_state=10, scale=1e-3, gap=None)
    np.testing.assert_array_equal(untied, expected)


@pytest.mark.parametrize(
    "scale, rate, gap", [(1e-3, 5, 1.5295e-8), (5e-3, 10, 5.0784e-12), (0.01, 0.5, 0.0184)]
)
def test_the_tie_gap_follows_the_published_rule(scale, rate, gap):
    assert tie_gap(scale, rate) == pytest.approx(gap, rel=1e-3)


def test_shared_layers_are_the_same_numbers_and_independent_ones_are_not():
    start = Start(a_scale=1.0, weight_scale=1.0, gap_rate=None, warm=0.0)
    noise = Noise(5)
    stream = noise.fork("layer", "all").normal(100, dtype=torch.float64).numpy()
    ssm, net = student(start, d_state=10, noise=noise), head(start, width=8, scale=2.0, noise=noise)
    np.testing.assert_array_equal(ssm.a, np.sort(np.abs(stream[::11]))[::-1])
    np.testing.assert_array_equal(ssm.b, np.sort(np.abs(stream[:10]))[::-1])
    np.testing.assert_array_equal(ssm.c, np.abs(stream[:10])[::-1])  # reversed, not sorted
    assert not np.array_equal(ssm.c, ssm.b)
    np.testing.assert_array_equal(net.inward, 2 * stream[:8])
    np.testing.assert_array_equal(net.outward, net.inward)
    np.testing.assert_array_equal(net.hidden[0], net.inward)
    apart = Start(a_scale=1.0, weight_scale=1.0, gap_rate=None, warm=0.0, streams="independent")
    ssm, net = student(apart, d_state=10, noise=noise), head(apart, width=8, scale=2.0, noise=noise)
    assert not set(ssm.b) & set(ssm.c)
    assert not set(net.inward) & (set(net.outward) | set(net.hidden.ravel()))


@pytest.mark.parametrize("tied", [2, 3, 4])
def test_leading_entries_are_tied_and_the_warm_start_leaves_c_alone(tied):
    start = Start(a_scale=0.01, weight_scale=0.02, gap_rate=2.0, warm=0.1, tied=tied)
    ssm = student(start, d_state=10, noise=Noise(1))
    cold = student(
        Start(a_scale=0.01, weight_scale=0.02, gap_rate=2.0, warm=0.0, tied=tied),
        d_state=10,
        noise=Noise(1),
    )
    assert start.gap is not None
    for each in (ssm.a, ssm.b):
        expected = each[0] - start.gap * np.array([1, 1.01, 1.05])[: tied - 1]
        np.testing.assert_allclose(each[1:tied], expected, rtol=0, atol=1e-16)
    np.testing.assert_allclose(ssm.a, cold.a + 0.1, rtol=1e-15)
    np.testing.assert_allclose(ssm.b, cold.b + 0.1, rtol=1e-15)
    np.testing.assert_array_equal(ssm.c, cold.c)


def test_a_student_of_two_states_has_room_for_one_tie_only():
    ssm = student(Start(tied=4), d_state=2, noise=Noise(0))
    assert ssm.a.shape == (2,)


def test_the_teachers_network_is_a_ramp_of_half_its_width():
    np.testing.assert_array_equal(slopes(teacher_head(15)), [7.5, 0.0])
