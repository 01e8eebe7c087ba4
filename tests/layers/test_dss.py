"""DSS: the softmax over the length, its growing modes, and what depends on the length."""

import math

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.layers.dss import DSSConfig
from robustssm.ops.recurrence import run

F64 = torch.float64


def build(d_model=4, d_state=8, **fields):
    config = DSSConfig(d_state=d_state, **fields)
    return config.build(d_model=d_model, length=32, noise=Noise(0)).double()


def with_growing_modes(layer, real=(0.7, -0.5, 0.0, 0.2)):
    with torch.no_grad():
        layer.w[:, 0] = torch.tensor(real, dtype=F64)
    return layer


def softmax_kernel(layer, length):
    """Re sum of C / w softmax(dt w (0 .. L-1)), the sum of exponentials written out."""
    w, C = torch.view_as_complex(layer.w), torch.view_as_complex(layer.C)
    lag = torch.arange(length, dtype=F64)
    exponent = (layer.log_dt.exp()[:, None] * w)[..., None] * lag
    total = exponent.exp().sum(-1, keepdim=True)
    return ((C / w)[..., None] * exponent.exp() / total).sum(1).real


def test_parameters_of_the_published_layer():
    layer = DSSConfig().build(d_model=128, length=1024, noise=Noise(0))
    assert sum(p.numel() for p in layer.parameters()) == 8512  # dt 128, w 64, C 8192, D 128


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_the_kernel_is_the_softmax(length):
    # Steps so long that the definition's reciprocal, conj(x) / (|x|^2 + 1e-7), is nearly 1 / x.
    layer = build(dt_min=2.0, dt_max=4.0)
    gap = layer.kernel(length, dtype=F64) - softmax_kernel(layer, length)
    assert gap.abs().max() < 1e-6 * softmax_kernel(layer, length).abs().max()


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("length", [1, 5, 40])
def test_the_kernel_is_the_released_formula(growing, length):
    layer = with_growing_modes(build()) if growing else build()
    w, C = torch.view_as_complex(layer.w), torch.view_as_complex(layer.C)
    z = layer.log_dt.exp()[:, None] * w
    grows = w.real > 0
    exponent = z[..., None] * torch.arange(length) - (z * grows * (length - 1))[..., None]
    flipped = z * torch.where(grows, -1.0, 1.0)
    x = (torch.exp(flipped * length) - 1) * w
    reciprocal = x.conj() / (x * x.conj() + 1e-7)
    coefficient = C * (torch.exp(flipped) - 1) * reciprocal
    expected = (coefficient[..., None] * exponent.exp()).sum(1).real
    torch.testing.assert_close(layer.kernel(length, dtype=F64), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("growing", [False, True])
def test_forward_reference_and_recurrence_agree(growing):
    layer = with_growing_modes(build()) if growing else build()
    x = Noise(1).normal(2, 33, 4, dtype=F64)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(y, run(layer.recurrence(x), x), rtol=1e-9, atol=1e-12)


def test_growing_modes_do_not_overflow_and_have_true_gradients():
    layer = with_growing_modes(build(dt_min=0.5, dt_max=1.0))
    for parameter in (layer.w, layer.log_dt, layer.C):
        (gradient,) = torch.autograd.grad(layer.kernel(5000, dtype=F64).square().sum(), parameter)
        assert torch.isfinite(gradient).all()
    assert torch.isfinite(layer.float().kernel(5000)).all()

    layer = with_growing_modes(build(dt_min=0.1, dt_max=0.2), real=(0.7, -0.5, 0.3, 0.2))

    def kernel(w, log_dt, C):
        parts = {"w": w, "log_dt": log_dt, "C": C}
        return torch.func.functional_call(layer, parts, (impulse,))

    impulse = torch.zeros(1, 12, 4, dtype=F64)
    impulse[:, 0] = 1.0
    inputs = tuple(p.detach().requires_grad_() for p in (layer.w, layer.log_dt, layer.C))
    assert torch.autograd.gradcheck(kernel, inputs)


def test_no_gradient_jumps_where_a_mode_begins_to_grow():
    layer = build()
    slopes = []
    for real in (-1e-6, 1e-6):
        with_growing_modes(layer, real=(real, -0.5, -0.5, -0.5))
        (slope,) = torch.autograd.grad(layer.kernel(20, dtype=F64).pow(2).sum(), layer.w)
        slopes.append(slope)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4)


def test_the_kernel_depends_on_the_length_and_causality_holds_at_each():
    layer = build()
    short, long = layer.kernel(16, dtype=F64), layer.kernel(64, dtype=F64)
    assert (short - long[:, :16]).abs().max() > 0.1 * short.abs().max()
    x = Noise(2).normal(2, 30, 4, dtype=F64).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:, :12].square().sum(), x)
    assert gradient[:, 12:].abs().max() <= 1e-12 * gradient.abs().max()


def test_initial_values():
    layer = DSSConfig(d_state=4).build(d_model=3, length=8, noise=Noise(0))
    expected = torch.tensor([[-0.5, 4.603293007067], [-0.5, 0.556501115084]])
    torch.testing.assert_close(layer.w.detach(), expected)
    assert (layer.log_dt >= math.log(1e-3)).all() and (layer.log_dt <= math.log(1e-1)).all()


def test_an_odd_state_size_is_refused():
    with pytest.raises(ValueError, match=r"`DSSConfig\(d_state=...\)` must be a positive even"):
        DSSConfig(d_state=5)
