"""S4: its sizes, its kernel by other roads, and one system at every length."""

import numpy as np
import pytest
import scipy.signal
import torch

from robustssm.core.config import from_dict
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.s4 import S4Config
from robustssm.ops.recurrence import impulse_response, run, spectral_radius
from robustssm.ops.structured import cauchy_generating_function

F64 = torch.float64


def build(d_model=4, *, seed=0, **fields):
    return S4Config(**fields).build(d_model=d_model, length=32, noise=Noise(seed))


def count(layer):
    return sum(p.numel() for p in layer.parameters())


def test_parameters_of_the_published_layer():
    assert count(build(128)) == 8608  # dt 128, Im A 32, P 64, B 64, C 8192, D 128
    assert count(build(128, trainable_real=True)) == 8608 + 32
    assert count(build(128, ssm_copies=None)) == 128 * (1 + 32 + 64 + 64 + 64 + 1)
    scaled = build(128, scaling=AdaptiveScalingConfig())
    assert count(scaled) == 8608 + 128 * 128


def test_a_real_part_that_is_not_trained_is_kept_and_saved():
    layer = build(d_state=4)
    assert "log_decay" not in dict(layer.named_parameters()) and "log_decay" in layer.state_dict()
    assert "log_decay" not in layer.roles()
    assert build(d_state=4, trainable_real=True).roles()["log_decay"] == "dynamics"


def test_initial_values():
    layer = build(256, d_state=64, dt_min=0.01, dt_max=0.02)
    dt = layer.log_dt.exp()
    assert 0.01 <= dt.min() < 0.0105 and 0.019 < dt.max() <= 0.02
    C = torch.view_as_complex(layer.C.detach())
    assert C.abs().square().mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.D.std().item() == pytest.approx(1.0, abs=0.15)
    assert layer.frequency.max().item() == pytest.approx(1303.2738, rel=1e-6)


def test_convolution_step_and_scipy_agree():
    layer = build(3, d_state=6).double()
    x = Noise(1).normal(1, 40, 3, dtype=F64)
    system = layer.recurrence(x)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=1e-9, atol=1e-12)
    for c in range(3):
        A, B, C = (M[0, 0, c].detach().numpy() for M in (system.A, system.B, system.C))
        D = system.D[c].detach().numpy()
        _, expected, _ = scipy.signal.dlsim((A, B, C @ A, C @ B + D, 1.0), x[0, :, c])
        np.testing.assert_allclose(y[0, :, c, None].detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_published_kernel_algorithm_gives_the_same_kernel():
    layer = build(3, d_state=8, ssm_copies=None).double()
    system = layer.system(dtype=F64)
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    P, B = torch.view_as_complex(layer.P), torch.view_as_complex(layer.B)
    for length in (16, 25):
        powers = torch.linalg.matrix_power(system.A[0, 0], length)
        c = system.C[0, 0, :, 0]
        c = c - (c[:, None] @ powers)[:, 0]
        C = torch.complex(*c.chunk(2, -1)).conj() / 2**0.5
        transform = cauchy_generating_function(a, P, B, C, layer.log_dt.exp(), length)
        K = layer.kernel(length, dtype=F64)
        torch.testing.assert_close(torch.fft.irfft(transform, n=length), K, rtol=1e-9, atol=1e-12)


def test_one_system_at_every_length():
    layer = build(d_state=8).double()
    x = Noise(2).normal(2, 150, 4, dtype=F64)
    y = layer(x)
    for length in (1, 31, 64, 65):
        torch.testing.assert_close(layer(x[:, :length]), y[:, :length], rtol=1e-9, atol=1e-11)
    other = S4Config(d_state=8).build(d_model=4, length=7, noise=Noise(0)).double()
    assert torch.equal(other(x), y)


def test_the_impulse_response_is_kernel_and_skip():
    layer = build(d_state=8).double()
    x = Noise(3).normal(1, 20, 4, dtype=F64)
    K = impulse_response(layer.recurrence(x), 20)[:, 0, 0]
    expected = layer.kernel(20, dtype=F64)
    expected = torch.cat([expected[:, :1] + layer.D[:, None], expected[:, 1:]], 1)
    torch.testing.assert_close(K, expected, rtol=1e-9, atol=1e-12)
    assert (spectral_radius(layer.recurrence(x)) < 1).all()


def test_copies_serve_the_channels_in_turn():
    layer = build(6, d_state=4, ssm_copies=2).double()
    with torch.no_grad():
        layer.frequency[1] *= 2
    x = Noise(4).normal(1, 12, 6, dtype=F64)
    whole = layer(x)
    for copy in range(2):
        channels = torch.arange(copy, 6, 2)
        single = build(3, d_state=4).double()
        with torch.no_grad():
            for name in ("log_dt", "C", "D"):
                getattr(single, name).copy_(getattr(layer, name)[channels])
            for name in ("log_decay", "frequency", "P", "B"):
                getattr(single, name).copy_(getattr(layer, name)[copy : copy + 1])
        torch.testing.assert_close(single(x[..., channels]), whole[..., channels])


def test_scaling_follows_the_skip():
    plain = build(d_state=4, scaling=None)
    scaled = build(d_state=4, scaling=AdaptiveScalingConfig(activation="tanh"))
    x = Noise(5).normal(2, 9, 4)
    assert torch.equal(scaled(x), scaled.scaling(plain(x)))


def test_gradients_reach_second_order():
    layer = build(2, d_state=4).double()
    x = Noise(6).normal(1, 70, 2, dtype=F64).requires_grad_()

    def slope(run):
        y = run(x).pow(3).sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), [layer.C, layer.log_dt, layer.P])

    for found, expected in zip(slope(layer), slope(layer.reference), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * scale)


def test_dynamics_stay_in_float32_under_autocast_and_in_bfloat16():
    layer = build(d_state=8)
    x = Noise(7).normal(2, 16, 4)
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), y)
        stepped, _ = layer.step(x[:, 0], layer.initial_state(2))
    torch.testing.assert_close(stepped, y[:, 0], rtol=1e-5, atol=1e-6)
    half = layer(x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half, layer(x.bfloat16().float()).bfloat16(), rtol=0, atol=0)


def test_the_recurrence_of_half_precision_tokens_is_in_float32():
    layer = build(d_state=4)
    x = Noise(8).normal(1, 5, 4).bfloat16()
    assert layer.recurrence(x).A.dtype is torch.float32
    y = run(layer.recurrence(x), x.float())
    torch.testing.assert_close(y, layer(x.float()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_state": 63}, r"positive even number.*d_state=63.*d_state=64"),
        ({"dt_min": 0.2}, r"dt_min <= dt_max"),
        ({"dt_min": 0.0}, r"`S4Config\(dt_min=...\)` must be greater than 0"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        S4Config(**fields)


def test_copies_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"must divide d_model.*3 for d_model=4"):
        build(4, ssm_copies=3)


def test_settings_survive_json():
    config = S4Config(ssm_copies=None, scaling=AdaptiveScalingConfig(activation="tanh"))
    assert from_dict(LayerConfig, config.to_dict()) == config
