"""The selective scan against the loop that defines it, in float64, with all gradients."""

import math

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.ops.kernels import native, torch_selective_scan
from robustssm.ops.selective_scan import hold_gain, selective_scan, selective_scan_reference

F64 = torch.float64


def values(noise, *shape):
    return noise.normal(*shape, dtype=F64)


def gradcheck(function, inputs, *, twice=False):
    """torch's own check by differences, which draws its directions globally."""
    with global_stream(Noise(98)):
        assert torch.autograd.gradcheck(function, inputs)
        assert not twice or torch.autograd.gradgradcheck(function, inputs)


def agree(fast, plain, inputs, *, rtol=1e-9, atol=1e-11):
    """Values and the gradients with respect to every input."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y, expected = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
    v = values(Noise(99), *y.shape)
    found = torch.autograd.grad(y, inputs, v)
    for name, got, want in zip(
        "0123456", found, torch.autograd.grad(expected, inputs, v), strict=False
    ):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda m, n=name: n + m)


def selective_inputs(noise, batch, time, channels, state):
    u = values(noise, batch, time, channels)
    delta = torch.nn.functional.softplus(values(noise, batch, time, channels) - 2)
    A = -(1 + torch.arange(state, dtype=F64)) * noise.uniform(channels, 1, low=0.5, dtype=F64)
    B, C = (values(noise, batch, time, state) for _ in range(2))
    return [u, delta, A, B, C, values(noise, channels)]


@pytest.mark.parametrize("how", ["euler", "zoh"])
@pytest.mark.parametrize(
    "batch, time, channels, state", [(1, 1, 1, 1), (1, 33, 5, 3), (5, 17, 6, 4), (2, 2, 3, 16)]
)
def test_selective_scan_is_the_loop(batch, time, channels, state, how, monkeypatch):
    inputs = selective_inputs(Noise(time), batch, time, channels, state)
    for step_elements, chunk_elements in [(2**16, 2**19), (2 * channels * state, 500), (1, 1)]:
        monkeypatch.setattr(torch_selective_scan, "_STEP_ELEMENTS", step_elements)
        monkeypatch.setattr(torch_selective_scan, "_CHUNK_ELEMENTS", chunk_elements)
        agree(
            lambda *x: selective_scan(*x, discretization=how),
            lambda *x: selective_scan_reference(*x, discretization=how),
            inputs,
        )


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_selective_scan_passes_gradcheck_twice(how, monkeypatch):
    monkeypatch.setattr(torch_selective_scan, "_CHUNK_ELEMENTS", 12)
    inputs = [x.requires_grad_() for x in selective_inputs(Noise(5), 2, 4, 2, 3)]
    run = lambda *x: selective_scan(*x, discretization=how)  # noqa: E731
    gradcheck(run, inputs, twice=True)


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_gradients_of_some_inputs_only(how):
    inputs = selective_inputs(Noise(6), 2, 9, 3, 2)
    for chosen in [(0,), (1,), (3, 4), (2, 5)]:
        for k, x in enumerate(inputs):
            x.requires_grad_(k in chosen)
        wanted = [inputs[k] for k in chosen]
        for create_graph in (False, True):
            got = torch.autograd.grad(
                selective_scan(*inputs, discretization=how).square().sum(),
                wanted,
                create_graph=create_graph,
            )
            y = selective_scan_reference(*inputs, discretization=how)
            torch.testing.assert_close(got, torch.autograd.grad(y.square().sum(), wanted))


def test_one_tensor_in_two_places():
    u, _, A, B, _, D = selective_inputs(Noise(7), 2, 6, 3, 3)
    u = u.abs().requires_grad_()
    agree(
        lambda u, B: selective_scan(u, u, A, B, B, D),
        lambda u, B: selective_scan_reference(u, u, A, B, B, D),
        [u, B],
    )


def test_hold_gain_and_its_gradient_at_and_near_zero():
    delta = torch.full((7,), 0.3, dtype=F64, requires_grad=True)
    A = torch.tensor([0.0, 1e-300, -1e-12, 1e-6, -0.8, -1.0, -30.0], dtype=F64, requires_grad=True)
    gain = hold_gain(delta, A)
    series = sum(0.3 ** (k + 1) * A.detach() ** k / math.gamma(k + 2) for k in range(60))
    torch.testing.assert_close(gain, series, rtol=1e-9, atol=0)
    (slope,) = torch.autograd.grad(gain.sum(), delta)
    torch.testing.assert_close(slope, torch.exp(0.3 * A.detach()), rtol=1e-9, atol=0)


def test_zero_order_hold_at_a_singular_state_matrix():
    inputs = selective_inputs(Noise(8), 2, 11, 3, 4)
    inputs[2][0] = torch.tensor([0.0, -1e-9, 1e-7, -0.5], dtype=F64)
    inputs = [x.requires_grad_() for x in inputs]
    y = selective_scan(*inputs, discretization="zoh")
    (dA,) = torch.autograd.grad(y.sum(), inputs[2])
    for n in range(4):  # the reference's own gradient cancels here; differences do not
        moved = [inputs[2].detach().clone() for _ in range(2)]
        moved[0][0, n] += 1e-4
        moved[1][0, n] -= 1e-4
        above, below = (
            selective_scan_reference(*inputs[:2], A, *inputs[3:], discretization="zoh").sum()
            for A in moved
        )
        torch.testing.assert_close(dA[0, n], (above - below).detach() / 2e-4, rtol=1e-6, atol=1e-8)


def test_extreme_steps_stay_finite():
    inputs = selective_inputs(Noise(9), 1, 5, 2, 3)
    inputs[1] = torch.tensor([0.0, 1e-12, 1e3, 1e-3, 50.0], dtype=F64)[None, :, None].expand(
        1, 5, 2
    )
    for how in ("euler", "zoh"):
        agree(
            lambda *x, how=how: selective_scan(*x, discretization=how),
            lambda *x, how=how: selective_scan_reference(*x, discretization=how),
            inputs,
        )


def test_float32_of_torch_agrees_with_float64():
    inputs = selective_inputs(Noise(10), 2, 200, 8, 16)
    with native.without():
        single = selective_scan(*(x.float() for x in inputs))
    exact = selective_scan_reference(*inputs)
    assert (single - exact).norm() / exact.norm() < 5e-7


def test_torch_keeps_only_the_states_at_chunk_starts():
    inputs = [x.float().requires_grad_() for x in selective_inputs(Noise(11), 64, 64, 64, 16)]
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x)
    with native.without(), hooks:
        selective_scan(*inputs)
    all_states = 64 * 64 * 64 * 16
    assert max(kept) <= all_states / 4


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_bias_and_gate_are_softplus_and_silu(how):
    noise = Noise(12)
    u, delta, A, B, C, D = selective_inputs(noise, 2, 9, 3, 2)
    bias, gate = values(noise, 3), values(noise, 2, 9, 3)

    def by_hand(u, x, A, B, C, D, bias, gate):
        y = selective_scan_reference(u, torch.log1p(torch.exp(x + bias)), A, B, C, D, **kind)
        return y * gate / (1 + torch.exp(-gate))

    kind = {"discretization": how}
    inputs = [u, delta.log(), A, B, C, D, bias, gate]
    for scan in (selective_scan, selective_scan_reference):
        agree(lambda *x, f=scan: f(*x[:6], bias=x[6], gate=x[7], **kind), by_hand, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_comes_of_an_empty_batch(dtype):
    for batch, time in ((0, 5), (0, 0)):
        inputs = selective_inputs(Noise(13), batch, time, 3, 2)
        inputs = [x.to(dtype).requires_grad_() for x in inputs]
        y = selective_scan(*inputs)
        assert y.shape == (batch, time, 3)
        for x, slope in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
            assert torch.equal(slope, torch.zeros_like(x))


def test_shapes_that_do_not_fit_are_refused():
    u, delta, A, B, C, D = selective_inputs(Noise(14), 2, 5, 3, 4)
    unchecked = getattr(selective_scan, "__wrapped__", selective_scan)  # by the annotations
    with pytest.raises(ValueError, match=r"`selective_scan\(B=...\)` must have shape \(2, 5, 4\)"):
        unchecked(u, delta, A, B[:, :4], C, D)
