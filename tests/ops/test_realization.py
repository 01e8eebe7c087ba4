"""Hankel singular values against the dense Hankel matrix, and effective ranks in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.layers.dss import DSSConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s5 import S5Config
from robustssm.ops.realization import (
    effective_rank,
    hankel_singular_values,
    memory_horizons,
    weighted_rank,
)
from robustssm.ops.recurrence import Recurrence, impulse_response
from robustssm.ops.time_varying import operator

F64 = torch.float64


def diagonal(*factors, weights=None):
    """One channel, real, y = sum_n w_n h_n."""
    A = torch.tensor(factors, dtype=F64)[None, None, None]
    weights = torch.ones_like(A) if weights is None else torch.tensor(weights, dtype=F64)
    return Recurrence(
        A=A,
        B=torch.ones_like(A)[..., None],
        C=weights.expand_as(A)[..., None, :],
        D=torch.ones(1, 1, 1, dtype=F64),
    )


def dense_hankel(recurrence, length):
    """Singular values, falling, of the blocks of H from the first half to the second."""
    H = operator(recurrence, length)
    cut = length // 2
    blocks = H[:, :, cut:, :, :cut].flatten(4, 5).flatten(2, 3)
    return torch.linalg.svdvals(blocks)


def recurrences():
    x = Noise(1).normal(2, 9, 4, dtype=F64)
    for config in (
        S4Config(d_state=4),
        DSSConfig(d_state=6),
        S5Config(d_state=6),
        S5Config(d_state=5, conjugate_symmetric=False),
        MambaConfig(d_state=3),
    ):
        layer = config.build(d_model=4, length=9, noise=Noise(0)).double().requires_grad_(False)
        yield pytest.param(layer.recurrence(x), id=config.name)


@pytest.mark.parametrize("recurrence", list(recurrences()))
def test_they_are_the_singular_values_of_the_dense_hankel_matrix(recurrence):
    expected = dense_hankel(recurrence, 9)
    found = hankel_singular_values(recurrence, 9)
    largest = expected[..., :1]
    count = min(expected.shape[-1], found.shape[-1])
    difference = (found[..., :count] - expected[..., :count]) / largest
    assert difference.abs().max() < 1e-7
    assert (found[..., count:] / largest < 1e-7).all()
    assert (expected[..., count:] / largest < 1e-7).all()


@pytest.mark.parametrize("length", [1, 2, 5, 8, 33])
def test_every_length_is_summed_to_the_end(length):
    system = diagonal(0.9, -0.5, 0.3)
    K = impulse_response(system, length + 1)[0, 0, 0]
    past, future = length // 2, length - length // 2
    index = torch.arange(future)[:, None] + torch.arange(past) + 1
    found = hankel_singular_values(system, length)[0, 0]
    expected = torch.zeros(3, dtype=F64)
    values = torch.linalg.svdvals(K[index]) if past else expected[:0]
    expected[: min(3, len(values))] = values[:3]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * max(1.0, float(found.max())))


@given(a=st.floats(-0.99, 0.99))
def test_of_one_mode_in_closed_form(a):
    """K[t] = a^t: the infinite Hankel matrix a^(i+j+1) has rank 1 and norm |a| / (1 - a^2)."""
    found = hankel_singular_values(diagonal(a), None)
    torch.testing.assert_close(
        found[0, 0, 0], torch.tensor(abs(a) / (1 - a * a), dtype=F64), rtol=1e-9, atol=1e-15
    )


def test_a_long_horizon_becomes_the_infinite_one_and_growing_modes_have_a_finite_one():
    system = diagonal(0.9, 0.7)
    torch.testing.assert_close(
        hankel_singular_values(system, 1000), hankel_singular_values(system, None)
    )
    growing = diagonal(1.05, 0.7)
    finite = hankel_singular_values(growing, 20)
    assert finite.isfinite().all() and finite[0, 0, 0] > 1
    with pytest.raises(Inapplicable, match=r"modulus below 1; the largest has 1\.05"):
        hankel_singular_values(growing, None)


def test_a_state_that_nothing_reads_does_not_count():
    read = hankel_singular_values(diagonal(0.9, 0.5, weights=[1.0, 0.0]), 40)
    assert read[0, 0, 1] < 1e-7 * read[0, 0, 0]
    assert effective_rank(read).item() == pytest.approx(1.0, abs=1e-6)


def test_effective_rank_counts_equal_values():
    values = torch.tensor([[1.0, 1, 1, 0], [3, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]], dtype=F64)
    expected = torch.tensor([3.0, 1, 0, 9 / 5], dtype=F64)
    torch.testing.assert_close(effective_rank(values), expected)
    groups = torch.stack([values[0], 1e-9 * values[1]])[None]
    assert weighted_rank(groups).item() == pytest.approx(3.0, abs=1e-6)
    assert weighted_rank(torch.zeros(1, 2, 3, dtype=F64)).item() == 0.0


def test_what_has_no_hankel_operator_is_refused():
    system = diagonal(0.9)
    with pytest.raises(Inapplicable, match="both ways"):
        hankel_singular_values(replace(system, backward=system), 4)
    varying = replace(system, A=system.A.expand(-1, 6, -1, -1))
    with pytest.raises(Inapplicable, match="same at every step"):
        hankel_singular_values(varying, None)
    with pytest.raises(ValueError, match="6 steps"):
        hankel_singular_values(varying, 4)
    with pytest.raises(ValueError, match="at least 1"):
        hankel_singular_values(system, 0)


@given(a=st.floats(0.05, 0.95), left=st.sampled_from([0.5, 0.01, 1e-4]))
def test_one_mode_is_forgotten_after_the_steps_of_its_closed_form(a, left):
    length = 400
    energy = [a ** (2 * k) - a ** (2 * length) for k in range(length + 1)]  # still to come
    expected = next(k for k, e in enumerate(energy) if e <= left * energy[0] * (1 + 1e-12))
    found = memory_horizons(diagonal(a), length, left=left).item()
    assert abs(found - expected) <= (abs(energy[expected] / energy[0] - left) < 1e-9 * left)
    assert found == pytest.approx(math.log(left) / (2 * math.log(a)), abs=1.001)


def test_memory_of_systems_that_vary_is_that_of_their_first_impulse():
    A = torch.tensor([0.5, 0.9, 0.9, 0.0, 0.9, 0.9], dtype=F64)[None, :, None, None]
    system = replace(diagonal(0.5), A=A)
    assert memory_horizons(system, 6).tolist() == [[3.0]]  # what A[3] = 0 ends
    same = diagonal(0.5)
    copied = replace(same, A=same.A.expand(2, 6, -1, -1))
    assert memory_horizons(copied, 6).tolist() == 2 * memory_horizons(same, 6).tolist()
    assert memory_horizons(diagonal(0.9, weights=[0.0]), 6).item() == 0
