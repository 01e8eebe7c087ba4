"""S4D: every initial spectrum and discretisation, by convolution, by steps and by scipy."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from robustssm.core.rng import Noise
from robustssm.layers.s4d import S4DConfig
from robustssm.ops.recurrence import spectral_radius

F64 = torch.float64


def build(d_model=4, **fields):
    return S4DConfig(**fields).build(d_model=d_model, length=32, noise=Noise(0))


@pytest.mark.parametrize(
    "discretization, expected",
    [
        ("zoh", [0.387011208635, 0.350341187798, 0.300984952682, 0.244020162256]),
        ("bilinear", [0.385766597874, 0.349877232113, 0.301444901652, 0.245362496017]),
    ],
)
def test_printed_kernel(discretization, expected):
    layer = build(1, d_state=4, discretization=discretization).double()
    with torch.no_grad():
        layer.log_dt.fill_(math.log(0.1))
        layer.frequency.copy_(math.pi * torch.arange(2, dtype=F64))
        layer.log_decay.fill_(math.log(0.5))
        layer.C.copy_(torch.tensor([1.0, 0.0]))
    K = layer.kernel(4, dtype=F64)
    torch.testing.assert_close(K, torch.tensor([expected], dtype=F64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("initial", ["lin", "inv", "legs", "real"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_convolution_step_and_scipy_agree(initial, discretization):
    layer = build(2, d_state=6, initial=initial, discretization=discretization).double()
    x = Noise(1).normal(1, 40, 2, dtype=F64)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=1e-9, atol=1e-12)
    system = layer.recurrence(x)
    assert (spectral_radius(system) < 1).all()
    for c in range(2):
        a, b, row = (M[0, 0, c].detach().flatten() for M in (system.A, system.B, system.C))
        # Real block form of the conjugate pairs, states (Re h, Im h).
        A = np.block([[np.diag(a.real), -np.diag(a.imag)], [np.diag(a.imag), np.diag(a.real)]])
        B = np.concatenate([b.real, b.imag])[:, None]
        C = 2 * np.concatenate([row.real, -row.imag])[None]
        D = system.D[c].detach().numpy()
        _, expected, _ = scipy.signal.dlsim((A, B, C @ A, C @ B + D, 1.0), x[0, :, c])
        np.testing.assert_allclose(y[0, :, c, None].detach(), expected, rtol=1e-9, atol=1e-12)


def test_initial_values():
    layer = build(3, d_state=8)
    torch.testing.assert_close(
        layer.frequency, math.pi * torch.arange(4.0).expand(3, 4), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(layer.log_decay.exp(), torch.full((3, 4), 0.5))
    real = build(3, d_state=8, initial="real", ssm_copies=1)
    torch.testing.assert_close(real.log_decay.exp(), torch.arange(1.0, 5.0)[None])
    assert (real.frequency == 0).all()


def test_parameter_count():
    own = build(128, d_state=64)
    assert sum(p.numel() for p in own.parameters()) == 128 * (1 + 32 + 32 + 64 + 1)
    shared = build(128, d_state=64, ssm_copies=1)
    assert sum(p.numel() for p in shared.parameters()) == 128 * (1 + 64 + 1) + 64


def test_copies_serve_the_channels_in_turn():
    layer = build(6, d_state=4, ssm_copies=2).double()
    with torch.no_grad():
        layer.frequency[1] *= 2
    poles = layer.system(dtype=F64).A[0, 0].log().imag / layer.log_dt.exp()[:, None]
    torch.testing.assert_close(poles, layer.frequency.repeat(3, 1))


def test_one_system_at_every_length():
    layer = build(d_state=8).double()
    x = Noise(2).normal(2, 150, 4, dtype=F64)
    y = layer(x)
    for length in (1, 64, 65):
        torch.testing.assert_close(layer(x[:, :length]), y[:, :length], rtol=1e-9, atol=1e-11)


def test_float32_keeps_its_digits_at_length_784():
    layer = build(8)
    K = layer.kernel(784)
    expected = layer.double().kernel(784, dtype=F64)
    assert K.dtype is torch.float32
    assert (K - expected).abs().max() < 1e-6 * expected.abs().max()


def test_an_odd_state_size_is_refused():
    with pytest.raises(ValueError, match="positive even number"):
        S4DConfig(d_state=7)
