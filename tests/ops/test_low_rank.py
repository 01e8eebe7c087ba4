"""The kernel of a diagonal plus rank one: compiled, by powers, and one step after the other."""

import math

import pytest
import torch

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.discretize import bilinear_low_rank
from robustssm.ops.hippo import legs_low_rank
from robustssm.ops.kernels import native
from robustssm.ops.low_rank import low_rank_reference, low_rank_response
from robustssm.testing import tolerances

compiled = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def system(rows=4, state=8, seed=0):
    """S4's discrete system as it starts, one set of eigenvalues for all rows, and a drawn C."""
    noise = Noise(seed)
    a, p, b = (v.expand(rows, -1) for v in legs_low_rank(2 * state))
    dt = noise.uniform(rows, low=math.log(1e-3), high=math.log(1e-1), dtype=torch.float64).exp()
    c = torch.view_as_complex(noise.fork("C").normal(rows, state, 2, dtype=torch.float64))
    return *bilinear_low_rank(a, p, b, dt), c


def outcome(values, length, make):
    values = [v.detach().clone().requires_grad_() for v in values]
    K = make(*values, length)
    weight = Noise(9).normal(*K.shape, dtype=torch.float64).to(K.dtype)
    loss = (K * weight).sum()
    return K.detach(), *torch.autograd.grad(loss, values, materialize_grads=True)


def in_float32(*arguments):
    return low_rank_response(*arguments, dtype=torch.float32)


def near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        error = (one.to(other.dtype) - other).abs().max()
        assert error <= tolerance * other.abs().max()


@pytest.mark.parametrize("length", [1, 2, 7, 32, 33])
def test_in_float64_it_is_the_loop(length):
    def fast(*arguments):
        return low_rank_response(*arguments, dtype=torch.float64)

    near(outcome(system(), length, fast), outcome(system(), length, low_rank_reference), 1e-9)


@compiled
@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v3", "generic"])
@pytest.mark.parametrize("rows, state, length", [(1, 1, 1), (5, 3, 33), (17, 8, 64), (33, 32, 200)])
def test_compiled_values_and_gradients(rows, state, length, level):
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    values = system(rows, state)
    with native.at_level(level):
        found = outcome(values, length, in_float32)
    near(found, outcome(values, length, low_rank_reference), tolerances.LOW_RANK)


@pytest.mark.parametrize("library", [pytest.param(True, marks=compiled), False])
def test_float32_at_published_sizes(library):
    values = system(16, 32)
    expected = outcome(values, 1024, low_rank_reference)
    if library:
        near(outcome(values, 1024, in_float32), expected, tolerances.LOW_RANK)
        return
    with native.without():
        near(outcome(values, 1024, in_float32), expected, 20 * tolerances.LOW_RANK)


@compiled
def test_the_same_bytes_on_one_and_two_threads():
    outcomes = []
    for threads in (1, 2):
        with cpu_threads(threads):
            outcomes.append(outcome(system(40, 4), 70, in_float32))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@compiled
def test_second_derivatives():
    seconds = []
    for dtype in (torch.float32, torch.float64):
        values = [v.detach().clone().requires_grad_() for v in system(3, 2)]
        K = low_rank_response(*values, 6, dtype=dtype)
        first = torch.autograd.grad(K.square().sum(), values, create_graph=True)
        total = sum((g.abs().square().sum() for g in first), torch.zeros(()))
        seconds.append(torch.autograd.grad(total, values))
    near(*seconds, 1e-4)


@compiled
def test_nan_stays_nan():
    e, *rest = system(3, 2)
    e = e.clone()
    e[1, 0] = torch.nan
    K = low_rank_response(e, *rest, 5, dtype=torch.float32)
    assert K[1, 1:].isnan().all() and K[[0, 2]].isfinite().all()


def test_gradients_of_the_form_by_powers():
    values = [v.detach().clone().requires_grad_() for v in system(2, 2)]
    assert torch.autograd.gradcheck(
        lambda *v: low_rank_response(*v, 5, dtype=torch.float64), values
    )
