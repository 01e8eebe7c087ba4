"""Mega against numbers computed elsewhere and an independent loop of its formulas, in float64."""

import math

import pytest
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.moving_average import MovingAverage
from robustssm.ops import moving_average
from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.recurrence import run

F64 = torch.float64


def silu(x):
    return x / (1 + torch.exp(-x))


def norm(x, module):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * module.weight + module.bias


def plain_average(average, x):
    """Every channel, average and step by itself."""
    directions, channels, count = average.delta.shape
    y = average.omega * x
    for way in range(directions):
        sequence = x if way == 0 else x.flip(1)
        p = 1 / (1 + torch.exp(-average.delta[way]))
        q = 1 - p / (1 + torch.exp(-average.alpha[way]))
        h = torch.zeros(len(x), channels, count, dtype=F64)
        outputs = []
        for token in sequence.unbind(1):
            h = q * h + p * average.beta[way] * token[..., None]
            outputs.append((average.gamma[way] * h).sum(-1) / math.sqrt(count))
        run_through = torch.stack(outputs, 1)
        y = y + (run_through if way == 0 else run_through.flip(1))
    return y


def plain_mega(layer, x):
    """The released code's equations, attention pair by pair."""
    causal = not layer.config.bidirectional
    average = plain_average(layer.average, x)
    if layer.scaling is not None:
        average = torch.relu(average @ layer.scaling.scale.weight.T) * average
    d, z_width = layer.widths[:2]
    mixed = silu(average) @ layer.mixed.weight.T + layer.mixed.bias
    u = 1 / (1 + torch.exp(-mixed[..., :d]))
    z, r = silu(mixed[..., d : d + z_width]), silu(mixed[..., d + z_width : -d])
    v = silu(x @ layer.value.weight.T + layer.value.bias)
    q, k = (z * layer.qk_gain[i] + layer.qk_offset[i] for i in range(2))
    read = []
    for t in range(x.shape[1]):
        seen = range(t + 1) if causal else range(x.shape[1])
        scores = torch.stack(
            [
                (q[:, t] * k[:, s]).sum(-1) / math.sqrt(z_width)
                + layer.bias.table[0, layer.bias.length - 1 + s - t]
                for s in seen
            ],
            -1,
        )
        weights = torch.exp(scores)
        weights = weights / weights.sum(-1, keepdim=True)
        read.append(sum(weights[:, i, None] * v[:, s] for i, s in enumerate(seen)))
    h_x = mixed[..., -d:]
    h = silu(h_x + (torch.stack(read, 1) * r) @ layer.hidden.weight.T + layer.hidden.bias)
    x = norm(x + u * (h - x), layer.norm)
    ffn = silu(x @ layer.expand.weight.T + layer.expand.bias) @ layer.contract.weight.T
    return norm(x + ffn + layer.contract.bias, layer.ffn_norm)


def build(d_model=4, length=16, **settings):
    config = MegaConfig(**settings)
    layer = config.build(d_model=d_model, length=length, noise=Noise(0)).double()
    for k, parameter in enumerate(layer.parameters()):  # far from zero, so that all of it matters
        parameter.data += Noise(k).normal(like=parameter, std=0.3)
    return layer


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("scaling", [None, AdaptiveScalingConfig()], ids=["plain", "scaled"])
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 11), (1, 16)])
def test_layer_is_the_equations(bidirectional, scaling, batch, length):
    layer = build(bidirectional=bidirectional, scaling=scaling, d_state=3, d_hidden=5)
    x = Noise(1).normal(batch, length, 4, dtype=F64).requires_grad_()
    v = Noise(2).normal(batch, length, 4, dtype=F64)
    inputs = [x, *layer.parameters()]
    expected = plain_mega(layer, x)
    gradients = torch.autograd.grad(expected, inputs, v)
    for y in (layer(x), layer.reference(x)):
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
        # At length 1 no lag is left for some parameters to act on.
        found = torch.autograd.grad(y, inputs, v, materialize_grads=True)
        for got, want in zip(found, gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_kernel_is_the_one_computed_elsewhere():
    average = MovingAverage(d_model=1, d_state=2, directions=1, noise=Noise(0)).double()
    with torch.no_grad():
        average.alpha.copy_(torch.tensor([0.3, -0.2]))
        average.delta.copy_(torch.tensor([0.1, 0.5]))
        average.beta.copy_(torch.tensor([1.0, -1.0]))
        average.gamma.copy_(torch.tensor([0.7, 0.4]))
    expected = [0.083793354771, 0.054763102128, 0.035541288038]
    expected += [0.022874699877, 0.014573937458, 0.009169414176]
    found = average.kernel(6, dtype=F64)[0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=0, atol=5e-8)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("toeplitz_up_to", [0, 256])
@pytest.mark.parametrize("length", [1, 2, 33, 100])
def test_average_is_its_loop(directions, length, toeplitz_up_to, monkeypatch):
    monkeypatch.setattr(moving_average, "TOEPLITZ_UP_TO", toeplitz_up_to)
    average = MovingAverage(d_model=3, d_state=4, directions=directions, noise=Noise(0)).double()
    x = Noise(length).normal(2, length, 3, dtype=F64)
    inputs = [x.requires_grad_(), *average.parameters()]
    found, expected = average(x), plain_average(average, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    v = Noise(1).normal(like=x)
    for got, want in zip(
        torch.autograd.grad(found, inputs, v, materialize_grads=True),
        torch.autograd.grad(expected, inputs, v),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("directions", [1, 2])
def test_compiled_code_and_torch_agree_in_float32(directions):
    average = MovingAverage(d_model=5, d_state=4, directions=directions, noise=Noise(0))
    x = Noise(1).normal(3, 100, 5).requires_grad_()
    inputs = [x, *average.parameters()]

    def outcome():
        y = average(x)
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    with native.without():
        expected = outcome()
    for got, want in zip(outcome(), expected, strict=True):
        # Measured 6.7e-7, relative to the largest entry, the worst of 10 seeds.
        assert (got - want).abs().max() <= 3e-6 * want.abs().max()


@pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")
def test_a_frozen_average_sums_no_weight_gradients(monkeypatch):
    average = MovingAverage(d_model=5, d_state=4, directions=2, noise=Noise(0))
    x = Noise(1).normal(3, 10, 5).requires_grad_()
    summed, gradients = [], cpu_scan.averages_gradients

    def counted(*arguments):
        summed.append(arguments)
        return gradients(*arguments)

    monkeypatch.setattr(cpu_scan, "averages_gradients", counted)
    free = torch.autograd.grad(average(x).square().sum(), x)
    assert len(summed) == 1
    with average.frozen():
        assert all(map(torch.equal, torch.autograd.grad(average(x).square().sum(), x), free))
    assert len(summed) == 1


def test_two_directions_are_one_and_its_mirror_image():
    both = MovingAverage(d_model=3, d_state=4, directions=2, noise=Noise(0)).double()
    x = Noise(1).normal(2, 12, 3, dtype=F64)
    halves = []
    for way in range(2):
        one = MovingAverage(d_model=3, d_state=4, directions=1, noise=Noise(0)).double()
        for name in ("delta", "alpha", "beta", "gamma"):
            getattr(one, name).data = getattr(both, name).data[way : way + 1]
        one.omega.data = both.omega.data if way == 0 else torch.zeros(3, dtype=F64)
        halves.append(one(x) if way == 0 else one(x.flip(1)).flip(1))
    torch.testing.assert_close(both(x), halves[0] + halves[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_recurrence_is_the_average(bidirectional):
    layer = build(bidirectional=bidirectional)
    x = Noise(3).normal(2, 9, 4, dtype=F64)
    recurrence = layer.recurrence(x)
    assert len(recurrence.directions) == 1 + bidirectional
    assert (recurrence.A.abs() < 1).all()
    torch.testing.assert_close(run(recurrence, x), layer.average(x), rtol=1e-9, atol=1e-12)


def test_only_the_causal_layer_ignores_the_future():
    x = Noise(4).normal(2, 12, 4, dtype=F64)
    moved = x.clone()
    moved[:, 7:] += 1
    causal, both = build(bidirectional=False), build()
    torch.testing.assert_close(causal(x)[:, :7], causal(moved)[:, :7], rtol=0, atol=1e-12)
    assert (both(x)[:, 0] - both(moved)[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "config, length, layers, embed, total",
    [
        (MegaConfig(), 1024, 4, 3 * 128 + 128, 903_686),
        (MegaConfig(d_hidden=32, d_ffn=32), 784, 2, 1 * 128 + 128, 163_464),
    ],
    ids=["cifar10", "mnist"],
)
def test_sizes_are_those_of_the_paper(config, length, layers, embed, total):
    layer = config.build(d_model=128, length=length, noise=Noise(0))
    count = sum(p.numel() for p in layer.parameters())
    head = 128 * 10 + 10
    assert layers * count + embed + head == total


def test_initial_draws():
    layer = MegaConfig().build(d_model=128, length=1024, noise=Noise(0))
    average = layer.average
    for name, std in {"delta": 0.2, "alpha": 0.2, "gamma": 1.0, "omega": 1.0}.items():
        values = getattr(average, name).detach()
        assert values.std().item() == pytest.approx(std, rel=0.2)
        assert abs(values.mean().item()) < 0.2 * std
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    assert (average.beta.detach() - signs).std().item() == pytest.approx(0.02, rel=0.1)
    for linear in (layer.value, layer.mixed, layer.hidden, layer.expand, layer.contract):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not linear.bias.any()
    assert layer.bias.table.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.qk_gain.std().item() == pytest.approx(0.02, rel=0.3) and not layer.qk_offset.any()


def test_longer_sequences_than_planned_are_refused():
    for bidirectional in (True, False):
        layer = build(length=4, bidirectional=bidirectional)
        with pytest.raises(ValueError, match="reach over 4 tokens; got a sequence of 5"):
            layer(torch.zeros(1, 5, 4, dtype=F64))


def test_autocast_keeps_the_average_in_float32():
    layer = MegaConfig().build(d_model=8, length=16, noise=Noise(0))
    x = Noise(5).normal(2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer.average(x), layer.average(x.double()).float())
        low = layer(x)
    assert (low - layer(x)).abs().max() < 0.1
    assert low.dtype == torch.float32  # its last act is a norm, which autocast keeps


def test_settings_survive_json():
    config = MegaConfig(d_hidden=5, bidirectional=False, scaling=AdaptiveScalingConfig())
    assert from_dict(LayerConfig, to_dict(config)) == config
