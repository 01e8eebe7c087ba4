"""The Mamba-2 block against an independent loop of its formulas, in float64."""

import itertools

import pytest
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.observation import observing
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.mamba2 import Mamba2Config
from robustssm.models.presets import modern, victim
from robustssm.models.tokens import Patches
from robustssm.ops.kernels import native
from robustssm.ops.recurrence import run, spectral_radius
from robustssm.testing.models import check_model

F64 = torch.float64
SCALINGS = pytest.mark.parametrize(
    "scaling", [None, AdaptiveScalingConfig(activation="tanh")], ids=["plain", "scaled"]
)


def block(d_model=6, noise=0, **settings):
    settings = {"d_state": 3, "headdim": 4, "chunk": 4} | settings
    return Mamba2Config(**settings).build(d_model=d_model, length=8, noise=Noise(noise)).double()


def plain_mamba2(layer, x):
    """The formulas of the paper, one head, token and example at a time."""
    inner, heads, width = layer.d_inner, layer.heads, layer.headdim
    state, taps = layer.config.d_state, layer.config.d_conv
    outputs = []
    for sequence in x:
        past, row = [], []
        h = [torch.zeros(state, width, dtype=F64) for _ in range(heads)]
        for token in sequence:
            projected = layer.in_proj.weight @ token
            z, v = projected[:inner], projected[inner : 2 * inner + 2 * state]
            dt = projected[2 * inner + 2 * state :]
            past = [*past, v]
            mixed = layer.conv1d.bias.clone()
            for lag in range(min(taps, len(past))):
                mixed = mixed + layer.conv1d.weight[:, 0, taps - 1 - lag] * past[-1 - lag]
            mixed = mixed / (1 + torch.exp(-mixed))
            u, B, C = mixed[:inner], mixed[inner : inner + state], mixed[inner + state :]
            parts = []
            for k in range(heads):
                delta = torch.log1p(torch.exp(dt[k] + layer.dt_bias[k]))
                mine = u[k * width : (k + 1) * width]
                decay = torch.exp(-delta * torch.exp(layer.A_log[k]))
                h[k] = decay * h[k] + delta * torch.outer(B, mine)
                parts.append(h[k].T @ C + layer.D[k] * mine)
            y = torch.cat(parts)
            if layer.scaling is not None:
                y = torch.tanh(layer.scaling.scale.weight @ y) * y
            y = y * z / (1 + torch.exp(-z))
            y = y / torch.sqrt(y.square().mean() + 1e-5) * layer.norm.weight
            row.append(layer.out_proj.weight @ y)
        outputs.append(torch.stack(row))
    return torch.stack(outputs)


@SCALINGS
@pytest.mark.parametrize("length", [1, 9])
def test_block_is_the_formulas_of_the_paper_with_all_gradients(scaling, length):
    layer = block(d_conv=3, scaling=scaling)
    with torch.no_grad():
        layer.norm.weight.copy_(Noise(3).uniform(12, low=0.5, high=2))
        layer.D.copy_(Noise(4).normal(3))
    x = Noise(1).normal(2, length, 6, dtype=F64).requires_grad_()
    v = Noise(2).normal(2, length, 6, dtype=F64)
    inputs = [x, *layer.parameters()]
    found, expected = layer(x), plain_mamba2(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = zip(
        torch.autograd.grad(found, inputs, v),
        torch.autograd.grad(expected, inputs, v, materialize_grads=True),
        strict=True,
    )
    for got, want in gradients:
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("batch, length", [(1, 1), (1, 33), (3, 2), (2, 7)])
def test_forward_is_the_steps(batch, length):
    layer = block()
    x = Noise(length).normal(batch, length, 6, dtype=F64)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=1e-9, atol=1e-12)


def test_gradients_by_differences():
    layer = block(d_model=2, d_state=2, headdim=2, d_conv=2, chunk=2)
    x = Noise(3).normal(1, 5, 2, dtype=F64).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    with global_stream(Noise(98)):  # torch's checks draw their directions globally
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(lambda x: layer(x), (x,))


def test_the_length_of_chunks_changes_no_number():
    x = Noise(1).normal(2, 23, 6, dtype=F64)
    expected = block(chunk=1)(x)
    for chunk in (3, 8, 23, 100):
        torch.testing.assert_close(block(chunk=chunk)(x), expected, rtol=1e-10, atol=1e-13)


def test_output_ignores_the_future():
    layer = block()
    x = Noise(4).normal(2, 12, 6, dtype=F64)
    moved = x.clone()
    moved[:, 7:] += 1
    assert torch.equal(layer(x)[:, :7], layer(moved)[:, :7])
    assert not torch.equal(layer(x)[:, 7], layer(moved)[:, 7])


def test_recurrence_run_gated_and_normed_is_the_layer():
    layer = block()
    x = Noise(5).normal(2, 9, 6, dtype=F64)
    recurrence = layer.recurrence(x)
    assert not recurrence.time_invariant and recurrence.groups == 12
    z = layer.in_proj(x)[..., :12]
    gated = run(recurrence, recurrence.u) * torch.nn.functional.silu(z)
    y = layer.out_proj(layer.norm(gated))
    torch.testing.assert_close(y, layer(x), rtol=1e-9, atol=1e-12)


def test_stable_whatever_the_parameters_are():
    layer = block(d_state=2)
    x = Noise(6).normal(1, 5, 6, dtype=F64)
    with torch.no_grad():
        layer.A_log.copy_(torch.tensor([-30.0, 0.0, 10.0]))
        layer.dt_bias.fill_(0.0)
        radius = spectral_radius(layer.recurrence(x))
        assert radius.max() < 1
        layer.A_log.copy_(torch.tensor([-1e3, 50.0, 700.0]))
        layer.dt_bias.copy_(torch.tensor([-1e3, 1e3, 0.0]))
        assert spectral_radius(layer.recurrence(x)).max() <= 1
        assert layer(x).isfinite().all()


def test_sizes_are_those_of_the_victim():
    layer = Mamba2Config(d_state=16, initial="normal").build(d_model=128, length=64, noise=Noise(0))
    assert (layer.d_inner, layer.heads, layer.headdim) == (256, 4, 64)
    shapes = {name: p.numel() for name, p in layer.named_parameters()}
    assert shapes == {
        "in_proj.weight": 128 * (2 * 256 + 2 * 16 + 4),
        "conv1d.weight": (256 + 2 * 16) * 4,
        "conv1d.bias": 256 + 2 * 16,
        "A_log": 4,
        "dt_bias": 4,
        "D": 4,
        "norm.weight": 256,
        "out_proj.weight": 256 * 128,
    }
    model = victim("mamba2", tokens=Patches(side=4)).build(
        shape=(3, 32, 32), num_classes=10, noise=Noise(0)
    )
    ours = sum(p.numel() for p in model.input.parameters())
    stem = 9 * 3 * 64 + 2 * 64 + 16 * 64 * 128 + 2 * 128  # convolutions without bias, batch norms
    assert model.parameter_count() - ours + stem == 554_234
    assert model.config.tokens.length((3, 32, 32)) == 64


def test_initial_step_sizes_and_decays():
    layer = Mamba2Config(d_state=2, headdim=1).build(d_model=1000, length=8, noise=Noise(0))
    dt = torch.nn.functional.softplus(layer.dt_bias.detach())
    assert 1e-3 * 0.999 <= dt.min() < 1.1e-3 and 0.09 < dt.max() <= 0.1001
    assert abs(dt.log10().mean() + 2) < 0.05  # log-uniform: centred on 1e-2
    decay = layer.A_log.detach().exp()
    assert 0.999 <= decay.min() < 1.1 and 15.9 < decay.max() <= 16.001
    assert abs(decay.mean() - 8.5) < 0.3
    assert torch.equal(layer.D, torch.ones(2000))
    port = Mamba2Config(d_state=2, headdim=1, initial="normal").build(
        d_model=1000, length=8, noise=Noise(0)
    )
    for drawn in (port.A_log, port.dt_bias):
        assert drawn.std().item() == pytest.approx(0.1, rel=0.05)
        assert abs(drawn.mean()) < 0.01
    assert not torch.equal(port.A_log, port.dt_bias)


def test_heads_fit_any_width():
    widths = {6: 4, 5: 2, 64: 64, 96: 64, 40: 16}
    for d_model, headdim in widths.items():
        layer = Mamba2Config(d_state=2).build(d_model=d_model, length=8, noise=Noise(0))
        assert (layer.headdim, layer.heads) == (headdim, 2 * d_model // headdim)


def test_autocast_keeps_the_scan_in_float32():
    layer = Mamba2Config(d_state=16).build(d_model=16, length=8, noise=Noise(0))
    x = Noise(6).normal(2, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.recurrence(x).A.dtype == torch.float32
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - layer(x)).abs().max() < 0.05 * layer(x).abs().max()


def test_bfloat16_parameters_keep_a_float32_state():
    layer = Mamba2Config(d_state=4).build(d_model=16, length=8, noise=Noise(0)).bfloat16()
    x = Noise(6).normal(2, 5, 16).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    y, state = layer.step(x[:, 0], layer.initial_state(2))
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.float32)
    assert state.h.shape == (2, 1, 32, 4) and state.window.shape == (2, 3, 40)


@SCALINGS
def test_float32_agrees_with_float64(scaling):
    """Measured 2.0e-6 of the largest entry (the gradient of A_log), the worst of 10 seeds."""
    settings = {"headdim": 16, "d_state": 8, "chunk": 32, "scaling": scaling}
    single, double = block(d_model=24, **settings).float(), block(d_model=24, **settings)
    x, v = Noise(7).normal(3, 70, 24), Noise(8).normal(3, 70, 24)

    def outcome(layer, dtype):
        given = x.to(dtype).requires_grad_()
        y = layer(given)
        return y, *torch.autograd.grad(y, [given, *layer.parameters()], v.to(dtype))

    expected = outcome(double, F64)
    found = [outcome(single, torch.float32)]
    with native.without():
        found.append(outcome(single, torch.float32))
    for outcomes in found:
        for got, want in zip(outcomes, expected, strict=True):
            assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_frozen_gives_the_same_gradient_and_none_to_parameters():
    layer = Mamba2Config(d_state=16).build(d_model=16, length=8, noise=Noise(0))
    x, v = Noise(7).normal(2, 40, 16).requires_grad_(), Noise(8).normal(2, 40, 16)
    (expected,) = torch.autograd.grad(layer(x), x, v)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    layer.requires_grad_(False)
    with layer.frozen(), hooks:
        (found,) = torch.autograd.grad(layer(x), x, v)
    assert torch.equal(found, expected)
    assert not any(t.requires_grad and t.is_leaf and t is not x for t in kept)


@pytest.mark.parametrize("scaled", [False, True])
def test_parts_are_reported_and_change_nothing(scaled):
    layer = block(scaling=AdaptiveScalingConfig() if scaled else None)
    x, seen = Noise(1).normal(2, 7, 6, dtype=F64), {}
    with observing(lambda module, part, before, after: seen.update({part: (before, after)})):
        y = layer(x)
    ads = ["ads"] if scaled else []
    parts = ["projection", "convolution", "ssm", *ads, "gate", "norm", "linear"]
    assert list(seen) == parts
    torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-14)
    for before, after in itertools.pairwise(parts):
        assert torch.equal(seen[before][1], seen[after][0])
    assert torch.equal(seen["projection"][0], x) and torch.equal(seen["linear"][1], y)
    recurrence = layer.recurrence(x)
    torch.testing.assert_close(seen["convolution"][1], recurrence.u, rtol=0, atol=0)
    torch.testing.assert_close(seen["ssm"][1], run(recurrence, recurrence.u), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        victim("mamba2", d_model=6, num_layers=2, d_state=4),
        modern("mamba2", d_model=6),
        modern("mamba2", d_model=6, d_state=3, ads="tanh"),
    ],
    ids=["victim", "modern", "scaled"],
)
def test_models_keep_the_contract(config):
    check_model(config, shape=(1, 3, 3))


def test_settings_survive_json_and_refuse_nonsense():
    config = Mamba2Config(d_state=4, headdim=8, scaling=AdaptiveScalingConfig(), dt_max=0.5)
    assert from_dict(LayerConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"must have dt_min <= dt_max; got 0.2 > 0.1. Swap"):
        Mamba2Config(dt_min=0.2)
    with pytest.raises(ValueError, match=r"must be None with initial='normal'.*got None and 0.2"):
        Mamba2Config(initial="normal", dt_max=0.2)
    with pytest.raises(ValueError, match=r"headdim=...\)` must divide expand \* d_model = 12; got"):
        Mamba2Config(headdim=8).build(d_model=6, length=8, noise=Noise(0))
    with pytest.raises(ValueError, match=r"No victim is called 'mamba'\. Did you mean 'mamba2'"):
        getattr(victim, "__wrapped__", victim)("mamba")  # by the annotations
