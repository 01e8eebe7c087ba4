"""S5 against scipy's simulation and an independent loop, in float64."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.s5 import S5Config, normal_legs
from robustssm.ops.hippo import legs_low_rank
from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.recurrence import run, spectral_radius

F64 = torch.float64

CASES = [
    S5Config(d_state=8),
    S5Config(d_state=6, conjugate_symmetric=False),
    S5Config(d_state=12, blocks=3),
    S5Config(d_state=8, real_part="negative"),
]


def layer_of(config, d_model=5, noise=0):
    layer = config.build(d_model=d_model, length=8, noise=Noise(noise)).double()
    with torch.no_grad():  # step sizes at which all modes decay within the test
        layer.log_dt.copy_(Noise(7).uniform(len(layer.log_dt), low=-3, high=-0.5, dtype=F64))
    return layer


def continuous(layer):
    """The parameters as complex matrices, read by hand."""
    real, imaginary = layer.A.detach().numpy().T
    if layer.config.real_part == "negative":
        real = -np.exp(real)
    B, C = (M.detach().numpy() for M in (layer.B, layer.C))
    return real + 1j * imaginary, B[..., 0] + 1j * B[..., 1], C[..., 0] + 1j * C[..., 1]


@pytest.mark.parametrize("config", CASES, ids=range(len(CASES)))
def test_layer_is_scipys_discretised_and_simulated_system(config):
    layer = layer_of(config)
    a, B, C = continuous(layer)
    dt = np.exp(layer.log_dt.detach().numpy())
    A = np.diag(np.exp(a * dt))
    # One continuous system per state, discretised by scipy's matrix exponential.
    held = [
        scipy.signal.cont2discrete(
            (a[n, None, None], B[n][None], np.eye(1), np.zeros((1, 5))), dt[n], method="zoh"
        )[1][0]
        for n in range(len(a))
    ]
    B = np.stack(held)
    # dlsim is real, and its output reads the state before the input: x[t+1] = A x[t] + B u[t]. The
    # layer's y[t] = read(C x[t+1]) + D u[t] has C' = C A and D' = C B + D.
    real = lambda M: np.block([[M.real, -M.imag], [M.imag, M.real]])  # noqa: E731
    read = 2.0 if config.conjugate_symmetric else 1.0
    A2, B2 = real(A), np.concatenate([B.real, B.imag])
    C2 = read * np.concatenate([C.real, -C.imag], 1)
    D2 = C2 @ B2 + np.diag(layer.D.detach().numpy())
    x = Noise(1).normal(2, 50, 5, dtype=F64)
    for sequence, y in zip(x, layer(x), strict=True):
        _, expected, _ = scipy.signal.dlsim((A2, B2, C2 @ A2, D2, 1.0), sequence.numpy())
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", [*CASES, *S5Config.samples()], ids=range(7))
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 37)])
def test_forward_is_the_steps_with_all_gradients(config, batch, length):
    layer = layer_of(config)
    x = Noise(length).normal(batch, length, 5, dtype=F64).requires_grad_()
    v = Noise(2).normal(batch, length, 5, dtype=F64)
    fast, plain = layer(x), layer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)
    inputs = [x, *layer.parameters()]
    for got, want in zip(
        torch.autograd.grad(fast, inputs, v), torch.autograd.grad(plain, inputs, v), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", CASES, ids=range(len(CASES)))
def test_recurrence_is_the_layer(config):
    layer = layer_of(config)
    x = Noise(3).normal(2, 9, 5, dtype=F64)
    recurrence = layer.recurrence(x)
    assert recurrence.time_invariant and recurrence.groups == 1
    torch.testing.assert_close(run(recurrence, x), layer(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", CASES[:3], ids=range(3))
def test_a_fresh_layer_is_the_hippo_n_system_in_its_own_basis(config):
    """The change of basis alone: real B, complex C and the dense real matrix, exponentiated."""
    layer = config.build(d_model=5, length=8, noise=Noise(0)).double()
    n = config.d_state // config.blocks
    k = np.arange(n)
    root = np.sqrt(2 * k + 1.0)
    A = -np.tril(np.outer(root, root), -1) - np.diag(k + 1.0) + np.outer(root, root) / 2
    dense = scipy.linalg.block_diag(*[A] * config.blocks)
    a, B, _ = continuous(layer)
    V = normal_legs(n)[1].numpy()
    V = V[:, n // 2 :] if config.conjugate_symmetric else V
    V = scipy.linalg.block_diag(*[V] * config.blocks)
    # V maps states of the layer to states of the dense system; pairs count twice.
    read = (lambda z: 2 * z.real) if config.conjugate_symmetric else (lambda z: z.real)
    for power in (0.0, 1.0, 7.0):
        direct = scipy.linalg.expm(0.05 * power * dense) @ read(V @ B)
        by_modes = read(V @ np.diag(np.exp(0.05 * power * a)) @ B)
        np.testing.assert_allclose(by_modes, direct, atol=2e-6)  # parameters were float32 once


def test_normal_legs_is_the_normal_part():
    eigenvalues, V = normal_legs(8)
    torch.testing.assert_close(V.mH @ V, torch.eye(8, dtype=V.dtype), rtol=0, atol=1e-13)
    A = V @ torch.diag(eigenvalues) @ V.mH
    torch.testing.assert_close(A.imag, torch.zeros(8, 8, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(eigenvalues[4:].flip(0), legs_low_rank(8)[0])
    torch.testing.assert_close(V[:, :4].flip(1), V[:, 4:].conj(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        normal_legs(4)[0].imag.abs().sort().values[::2],
        torch.tensor([0.556501115084, 4.603293007067], dtype=F64),
    )


def test_size_is_that_of_the_paper():
    config = S5Config(d_state=128, conjugate_symmetric=False, initial="s5_pytorch")
    layer = config.build(d_model=128, length=1024, noise=Noise(0))
    assert sum(p.numel() for p in layer.parameters()) == 66_048
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes["B"] == (128, 128, 2) and shapes["C"] == (128, 128, 2)


@pytest.mark.parametrize(
    "initial, b, c", [("jax", 128**-0.5, 128**-0.5), ("s5_pytorch", 0.774 * 128**-0.5, 0.774 / 128)]
)
def test_initial_draws(initial, b, c):
    config = S5Config(d_state=128, conjugate_symmetric=False, initial=initial)
    layer = config.build(d_model=128, length=8, noise=Noise(0))
    # A unitary change of basis keeps the sums of squares: E|B|^2 = b^2, E|C|^2 = 2 c^2.
    B, C = (M.detach().square().sum(-1).mean().sqrt().item() for M in (layer.B, layer.C))
    assert B == pytest.approx(b, rel=0.02)
    assert C == pytest.approx(2**0.5 * c, rel=0.02)
    inside = (layer.D >= 0) & (layer.D <= 1)
    assert inside.all() == (initial == "s5_pytorch")
    assert math.log(1e-3) <= layer.log_dt.min() and layer.log_dt.max() <= math.log(0.1)


def test_negative_real_parts_stay_stable_whatever_training_does():
    layer = layer_of(S5Config(d_state=8, real_part="negative"))
    free = layer_of(S5Config(d_state=8))
    with torch.no_grad():
        layer.A[:, 0] += 5.0
        free.A[:, 0] += 5.0
    x = Noise(0).normal(1, 2, 5, dtype=F64)
    assert spectral_radius(layer.recurrence(x)).max() < 1
    assert spectral_radius(free.recurrence(x)).max() > 1


def test_autocast_and_low_precision_keep_the_state_in_complex64():
    layer = S5Config(d_state=8).build(d_model=5, length=8, noise=Noise(0))
    x = Noise(4).normal(2, 9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            layer(x), layer.double()(x.double()).float(), rtol=1e-4, atol=1e-5
        )
    low = layer.bfloat16()
    y, state = low.step(x[:, 0].bfloat16(), low.initial_state(2))
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.complex64)
    assert low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("config", S5Config.samples(), ids=range(3))
def test_compiled_code_and_torch_agree_in_float32(config):
    layer = config.build(d_model=5, length=8, noise=Noise(0))
    x = Noise(1).normal(3, 100, 5).requires_grad_()
    inputs = [x, *layer.parameters()]

    def outcome():
        y = layer(x)
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    with native.without():
        expected = outcome()
    for got, want in zip(outcome(), expected, strict=True):
        # Measured 4.7e-6, relative to the largest entry, the worst of 10 seeds.
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")
def test_a_frozen_layer_sums_no_weight_gradients(monkeypatch):
    layer = S5Config(d_state=8).build(d_model=5, length=8, noise=Noise(0))
    x = Noise(1).normal(3, 10, 5).requires_grad_()
    summed, gradients = [], cpu_scan.system_gradients

    def counted(*arguments):
        summed.append(arguments)
        return gradients(*arguments)

    monkeypatch.setattr(cpu_scan, "system_gradients", counted)
    free = torch.autograd.grad(layer(x).square().sum(), x)
    assert len(summed) == 1
    with layer.frozen():
        assert all(map(torch.equal, torch.autograd.grad(layer(x).square().sum(), x), free))
    assert len(summed) == 1


def test_output_ignores_the_future():
    layer = layer_of(CASES[0])
    x = Noise(5).normal(2, 40, 5, dtype=F64)
    moved = x.clone()
    moved[:, 21:] += 1
    torch.testing.assert_close(layer(x)[:, :21], layer(moved)[:, :21], rtol=0, atol=1e-15)


def test_settings_survive_json_and_refuse_nonsense():
    config = S5Config(d_state=4, scaling=AdaptiveScalingConfig(), conjugate_symmetric=False)
    assert from_dict(LayerConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"multiple of 2 \* blocks.*Try d_state=4"):
        S5Config(d_state=7, blocks=2)
    with pytest.raises(ValueError, match="multiple of blocks"):
        S5Config(d_state=7, blocks=2, conjugate_symmetric=False)
    with pytest.raises(ValueError, match="at most dt_max"):
        S5Config(dt_min=0.2)
