"""The Mamba block against an independent loop of its formulas, in float64."""

import pytest
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.ops.kernels import native
from robustssm.ops.recurrence import run

F64 = torch.float64


def block(d_model=6, noise=0, **settings):
    return MambaConfig(**settings).build(d_model=d_model, length=8, noise=Noise(noise)).double()


def plain_mamba(layer, x, discretization):
    """The formulas of the paper, one number at a time along the batch and time."""
    W_in, W_x, W_out = layer.in_proj.weight, layer.x_proj.weight, layer.out_proj.weight
    inner, taps, state = layer.d_inner, layer.config.d_conv, layer.config.d_state
    outputs = []
    for sequence in x:
        h, past, row = torch.zeros(inner, state, dtype=F64), [], []
        for token in sequence:
            v, z = W_in[:inner] @ token, W_in[inner:] @ token
            past = [*past, v]
            u = layer.conv1d.bias.clone()
            for lag in range(min(taps, len(past))):
                u = u + layer.conv1d.weight[:, 0, taps - 1 - lag] * past[-1 - lag]
            u = u / (1 + torch.exp(-u))
            selected = W_x @ u
            dt, B, C = (
                selected[: layer.dt_rank],
                selected[layer.dt_rank : -state],
                selected[-state:],
            )
            delta = torch.log1p(torch.exp(layer.dt_proj.weight @ dt + layer.dt_proj.bias))
            A = -torch.exp(layer.A_log)
            y = layer.D * u
            for n in range(state):
                a = torch.exp(delta * A[:, n])
                gain = delta if discretization == "euler" else (a - 1) / A[:, n]
                new = a * h[:, n] + gain * B[n] * u
                h = torch.cat([h[:, :n], new[:, None], h[:, n + 1 :]], 1)
                y = y + C[n] * new
            if layer.scaling is not None:
                y = torch.tanh(layer.scaling.scale.weight @ y) * y
            row.append(W_out @ (y * z / (1 + torch.exp(-z))))
        outputs.append(torch.stack(row))
    return torch.stack(outputs)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize(
    "scaling", [None, AdaptiveScalingConfig(activation="tanh")], ids=["plain", "scaled"]
)
def test_block_is_the_formulas_of_the_paper(discretization, scaling):
    layer = block(d_state=3, d_conv=3, discretization=discretization, scaling=scaling)
    x = Noise(1).normal(2, 9, 6, dtype=F64)
    v = Noise(2).normal(2, 9, 6, dtype=F64)
    parameters = list(layer.parameters())
    x.requires_grad_()
    found, expected = layer(x), plain_mamba(layer, x, discretization)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradients = zip(
        torch.autograd.grad(found, [x, *parameters], v),
        torch.autograd.grad(expected, [x, *parameters], v),
        strict=True,
    )
    for got, want in gradients:
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("batch, length", [(1, 1), (1, 33), (3, 2), (2, 7)])
def test_forward_is_the_steps(batch, length):
    layer = block()
    x = Noise(length).normal(batch, length, 6, dtype=F64)
    torch.testing.assert_close(layer(x), layer.reference(x), rtol=1e-9, atol=1e-12)


def test_steps_can_be_taken_up_where_they_were_left():
    layer = block()
    x = Noise(3).normal(2, 6, 6, dtype=F64)
    state = layer.initial_state(2)
    outputs = []
    for token in x.unbind(1):
        y, state = layer.step(token, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(x), rtol=1e-9, atol=1e-12)
    assert state.window.shape == (2, 3, 12)


def test_output_ignores_the_future():
    layer = block()
    x = Noise(4).normal(2, 12, 6, dtype=F64)
    moved = x.clone()
    moved[:, 7:] += 1
    assert torch.equal(layer(x)[:, :7], layer(moved)[:, :7])
    assert not torch.equal(layer(x)[:, 7], layer(moved)[:, 7])


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_recurrence_run_and_gated_is_the_layer(discretization):
    layer = block(discretization=discretization)
    x = Noise(5).normal(2, 9, 6, dtype=F64)
    recurrence = layer.recurrence(x)
    assert not recurrence.time_invariant
    z = layer.in_proj(x).chunk(2, -1)[1]
    y = run(recurrence, recurrence.u) * torch.nn.functional.silu(z)
    torch.testing.assert_close(layer.out_proj(y), layer(x), rtol=1e-9, atol=1e-12)


def test_size_is_that_of_the_paper():
    layer = MambaConfig().build(d_model=128, length=1024, noise=Noise(0))
    assert (layer.d_inner, layer.dt_rank) == (256, 8)
    count = sum(p.numel() for p in layer.parameters())
    assert count == 116_480
    embed, norms, head = 3 * 128 + 128, 5 * 2 * 128, 128 * 10 + 10
    assert 4 * count + embed + norms + head == 469_002  # "about 469 000" by hand


def test_initial_step_sizes_and_decays():
    layer = MambaConfig().build(d_model=512, length=8, noise=Noise(0))
    dt = torch.nn.functional.softplus(layer.dt_proj.bias.detach())
    assert 1e-3 * 0.999 <= dt.min() < 1.1e-3 and 0.09 < dt.max() <= 0.1001
    log_dt = dt.log10()
    assert abs(log_dt.mean() + 2) < 0.05  # log-uniform: centred on 1e-2
    torch.testing.assert_close(
        torch.exp(layer.A_log.detach()), torch.arange(1.0, 17).expand(1024, 16)
    )
    assert layer.dt_proj.weight.abs().max() <= 32**-0.5
    assert torch.equal(layer.D, torch.ones(1024))


def test_autocast_keeps_the_scan_in_float32():
    layer = MambaConfig().build(d_model=16, length=8, noise=Noise(0))
    x = Noise(6).normal(2, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.recurrence(x).A.dtype == torch.float32
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - layer(x)).abs().max() < 0.05 * layer(x).abs().max()


def test_bfloat16_parameters_keep_a_float32_state():
    layer = MambaConfig().build(d_model=16, length=8, noise=Noise(0)).bfloat16()
    x = Noise(6).normal(2, 5, 16).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    y, state = layer.step(x[:, 0], layer.initial_state(2))
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.float32)


def test_settings_survive_json_and_refuse_nonsense():
    config = MambaConfig(d_state=4, scaling=AdaptiveScalingConfig(), discretization="zoh")
    assert from_dict(LayerConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"dt_min=.*must be at most dt_max"):
        MambaConfig(dt_min=0.2)


def test_same_noise_same_block():
    one, two = (MambaConfig().build(d_model=8, length=8, noise=Noise(3)) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize(
    "scaling", [None, AdaptiveScalingConfig(activation="tanh")], ids=["plain", "scaled"]
)
def test_float32_agrees_with_float64(discretization, scaling):
    """Measured 8.9e-7 of the largest entry."""
    settings = {"discretization": discretization, "scaling": scaling}
    single, double = block(d_model=24, **settings).float(), block(d_model=24, **settings)
    x, v = Noise(7).normal(3, 70, 24), Noise(8).normal(3, 70, 24)
    outcomes = []
    for layer, dtype in ((single, torch.float32), (double, F64)):
        given = x.to(dtype).requires_grad_()
        y = layer(given)
        parameters = list(layer.parameters())
        outcomes.append((y, *torch.autograd.grad(y, [given, *parameters], v.to(dtype))))
    for got, want in zip(*outcomes, strict=True):
        assert (got - want).abs().max() < 4e-6 * want.abs().max()


def test_frozen_gives_the_same_gradient_and_none_to_parameters():
    layer = MambaConfig().build(d_model=16, length=8, noise=Noise(0))
    x, v = Noise(7).normal(2, 40, 16).requires_grad_(), Noise(8).normal(2, 40, 16)
    (expected,) = torch.autograd.grad(layer(x), x, v)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    layer.requires_grad_(False)
    with layer.frozen(), hooks:
        (found,) = torch.autograd.grad(layer(x), x, v)
    assert torch.equal(found, expected)
    assert not any(t.requires_grad and t.is_leaf and t is not x for t in kept)


@pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")
def test_memory_for_backward():
    """Rows of 2 d_inner from in_proj, u, step sizes, y; x_proj's columns; states at starts; A."""
    layer = MambaConfig().build(d_model=64, length=8, noise=Noise(0))
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
        return t

    x = Noise(7).normal(2, 512, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    found = sum(size for at, size in kept.items() if at not in parameters)
    inner, columns = 128, 4 + 2 * 16
    starts = 2 * (512 / 32 - 1) * inner * 16
    assert y.requires_grad
    assert found <= 2 * 512 * (64 + 5 * inner + columns) + starts + 2 * inner * 16
