"""The LRU in both forms against loops of its formulas, in float64; the ring its spectrum is on."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.observation import observing
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.lru import LRUConfig
from robustssm.models.presets import modern, victim
from robustssm.ops.kernels import native
from robustssm.ops.recurrence import run, spectral_radius
from robustssm.testing.models import check_model

F64 = torch.float64
FORMS = ("mimo", "channelwise")


def layer_of(form, d_model=5, noise=0, **fields):
    config = LRUConfig(form=form, **({"d_state": 6} | fields))
    return config.build(d_model=d_model, length=8, noise=Noise(noise)).double()


def plain_lru(layer, x):
    """The formulas, one state and one number at a time, real and imaginary parts by hand."""
    states, channels = len(layer.nu_log), layer.d_model
    modulus = torch.exp(-torch.exp(layer.nu_log))
    phase = torch.exp(layer.theta_log)
    mimo = layer.config.form == "mimo"
    outputs = []
    for sequence in x:
        re, im, row = {}, {}, []
        for u in sequence:
            y = [layer.D[c] * u[c] for c in range(channels)]
            for n in range(states):
                a, b = modulus[n] * torch.cos(phase[n]), modulus[n] * torch.sin(phase[n])
                for system in range(1 if mimo else channels):
                    if mimo:
                        gain = torch.exp(layer.gamma_log[n])
                        drive = [gain * (layer.B[n, :, part] * u).sum() for part in (0, 1)]
                        readers = range(channels)
                    else:
                        drive = [layer.B[system, n, part] * u[system] for part in (0, 1)]
                        readers = (system,)
                    at = (system, n)
                    p, q = re.get(at, 0.0), im.get(at, 0.0)
                    re[at], im[at] = a * p - b * q + drive[0], b * p + a * q + drive[1]
                    for c in readers:
                        y[c] = y[c] + layer.C[c, n, 0] * re[at] - layer.C[c, n, 1] * im[at]
            row.append(torch.stack(y))
        outputs.append(torch.stack(row))
    return torch.stack(outputs)


@pytest.mark.parametrize("form", FORMS)
def test_layer_is_the_formulas_of_the_paper_with_all_gradients(form):
    layer = layer_of(form, d_model=3, d_state=4)
    x = Noise(1).normal(2, 9, 3, dtype=F64).requires_grad_()
    v = Noise(2).normal(2, 9, 3, dtype=F64)
    fast, plain = layer(x), plain_lru(layer, x)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)
    inputs = [x, *layer.parameters()]
    for got, want in zip(
        torch.autograd.grad(fast, inputs, v), torch.autograd.grad(plain, inputs, v), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 37), (1, 170)])
def test_forward_is_the_steps_and_the_recurrence(form, batch, length):
    layer = layer_of(form)
    x = Noise(length).normal(batch, length, 5, dtype=F64)
    y = layer(x)
    torch.testing.assert_close(y, layer.reference(x), rtol=1e-9, atol=1e-11)
    recurrence = layer.recurrence(x)
    assert recurrence.time_invariant and recurrence.groups == (1 if form == "mimo" else 5)
    torch.testing.assert_close(run(recurrence, x), y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_and_their_gradients_by_differences(form):
    layer = layer_of(form, d_model=2, d_state=2)
    x = Noise(3).normal(1, 4, 2, dtype=F64).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    with global_stream(Noise(98)):  # torch's checks draw their directions globally
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_stable_whatever_the_parameters_are(form):
    layer = layer_of(form, d_state=41)
    x = Noise(0).normal(1, 2, 5, dtype=F64)
    with torch.no_grad():
        layer.nu_log.copy_(torch.linspace(-30, 5, 41))  # to the end of what float64 resolves
        layer.theta_log.copy_(Noise(4).normal(41, std=5, dtype=F64))
        assert spectral_radius(layer.recurrence(x)).max() < 1
        layer.nu_log.copy_(torch.linspace(-1e3, 1e3, 41))
        assert spectral_radius(layer.recurrence(x)).max() <= 1 + 1e-15
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("r_min, r_max, max_phase", [(0.0, 1.0, 6.28), (0.9, 0.99, 0.3)])
def test_eigenvalues_start_uniform_over_a_ring(form, r_min, r_max, max_phase):
    config = LRUConfig(d_state=4000, form=form, r_min=r_min, r_max=r_max, max_phase=max_phase)
    layer = config.build(d_model=1, length=8, noise=Noise(0)).double()
    with torch.no_grad():
        A = layer.recurrence(torch.zeros(1, 1, 1, dtype=F64)).A.flatten()
    radius, phase = A.abs().numpy(), (A.angle() % (2 * math.pi)).numpy()
    assert r_min - 1e-6 <= radius.min() and radius.max() <= r_max
    share = (radius**2 - r_min**2) / (r_max**2 - r_min**2)  # areas are uniform, not radii
    # Measured 0.3; radii that are themselves uniform would give 1e-200 on the whole disc.
    assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(phase / max_phase, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(share, phase)[0, 1]) < 0.06


def test_the_norm_of_the_inputs_gives_states_their_variance():
    """White inputs of variance 1 give states of variance 1: B has rows of expected norm 1."""
    layer = LRUConfig(d_state=300, r_max=0.99).build(d_model=64, length=8, noise=Noise(0)).double()
    recurrence = layer.recurrence(torch.zeros(1, 1, 64, dtype=F64))
    A, B = (M.detach()[0, 0, 0] for M in (recurrence.A, recurrence.B))
    variance = (B.abs() ** 2).sum(1) / (1 - A.abs() ** 2)
    assert variance.mean().item() == pytest.approx(1, abs=0.02)
    assert 0.5 < variance.min() and variance.max() < 2


@pytest.mark.parametrize(
    "form, b, c",
    [("mimo", (2 * 64) ** -0.5, 48**-0.5), ("channelwise", (2 * 48) ** -0.5, 48**-0.5)],
)
def test_initial_draws(form, b, c):
    layer = LRUConfig(form=form, d_state=48).build(d_model=64, length=8, noise=Noise(0))
    assert layer.B.std().item() == pytest.approx(b, rel=0.03)
    assert layer.C.std().item() == pytest.approx(c, rel=0.03)
    assert 0.7 < layer.D.std() < 1.3
    parts = layer.B.detach().flatten(0, 1).T
    assert abs(torch.corrcoef(parts)[0, 1]) < 0.05


def test_channelwise_channels_never_meet_and_share_their_spectrum():
    layer = layer_of("channelwise")
    x = Noise(5).normal(1, 9, 5, dtype=F64)
    moved = x.clone()
    moved[..., 2] += 1
    same = (layer(x) == layer(moved)).all(1)[0]
    assert same.tolist() == [True, True, False, True, True]
    assert layer.recurrence(x).A.shape == (1, 1, 1, 6)
    assert not torch.equal(layer_of("mimo")(x)[..., 0], layer_of("mimo")(moved)[..., 0])


def test_float32_keeps_its_digits_at_length_1024():
    """Eigenvalues near 1, whose powers take in every error. Measured 4.1e-6 and 3.2e-7."""
    x = Noise(6).normal(2, 1024, 5)
    for form, tolerance in (("mimo", 1.5e-5), ("channelwise", 1e-6)):
        layer = layer_of(form, d_state=32, r_min=0.99, r_max=0.9999)
        expected = layer(x.double())
        found = layer.float()(x)
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_autocast_and_low_precision_keep_the_state_in_complex64(form):
    layer = LRUConfig(form=form, d_state=8).build(d_model=5, length=8, noise=Noise(0))
    x = Noise(4).normal(2, 9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert layer.recurrence(x).A.dtype == torch.complex64
    torch.testing.assert_close(y, layer.double()(x.double()).float(), rtol=1e-4, atol=1e-5)
    low = layer.bfloat16()
    y, _ = low.step(x[:, 0].bfloat16(), low.initial_state(2))
    assert y.dtype == low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_compiled_code_and_torch_agree_in_float32(form):
    layer = LRUConfig(form=form).build(d_model=5, length=8, noise=Noise(0))
    x = Noise(1).normal(3, 100, 5).requires_grad_()
    inputs = [x, *layer.parameters()]

    def outcome():
        y = layer(x)
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    with native.without():
        expected = outcome()
    for got, want in zip(outcome(), expected, strict=True):
        # Measured 1.3e-6, relative to the largest entry, the worst of 10 seeds.
        assert (got - want).abs().max() <= 5e-6 * want.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_frozen_makes_the_system_once(form, monkeypatch):
    layer = LRUConfig(form=form).build(d_model=5, length=8, noise=Noise(0))
    name = {"mimo": "_make_system", "channelwise": "kernel"}[form]
    made, make = [], getattr(layer, name)
    monkeypatch.setattr(
        layer, name, lambda *given, **named: made.append(1) or make(*given, **named)
    )
    x = Noise(1).normal(2, 20, 5).requires_grad_()
    (free,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert len(made) == 1
    with layer.frozen():
        for _ in range(3):
            assert torch.equal(torch.autograd.grad(layer(x).square().sum(), x)[0], free)
    assert len(made) == 2


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_reported(form):
    layer = layer_of(form, scaling=AdaptiveScalingConfig())
    x, seen = Noise(1).normal(2, 7, 5, dtype=F64), []
    with observing(lambda module, part, before, after: seen.append((part, before, after))):
        y = layer(x)
    assert [part for part, *_ in seen] == ["ssm", "ads"]
    assert torch.equal(seen[0][1], x) and torch.equal(seen[1][2], y)
    torch.testing.assert_close(seen[0][2], run(layer.recurrence(x), x), rtol=1e-9, atol=1e-11)


def test_roles():
    assert layer_of("mimo").roles()["gamma_log"] == "dynamics"
    assert set(layer_of("channelwise").roles()) == {"nu_log", "theta_log", "D"}


def test_sizes_are_those_of_the_victim():
    layer = LRUConfig(form="channelwise").build(d_model=128, length=1024, noise=Noise(0))
    assert sum(p.numel() for p in layer.parameters()) == 2 * 64 + 2 * 2 * 128 * 64 + 128
    model = victim("lru").build(shape=(3, 32, 32), num_classes=10, noise=Noise(0))
    biases = 4 * 2 * 128  # of the gated maps: theirs have none
    assert model.parameter_count() - biases == 265_994
    s4d = victim("s4d").build(shape=(3, 32, 32), num_classes=10, noise=Noise(0))
    assert s4d.parameter_count() == 201_482


@pytest.mark.parametrize(
    "config",
    [
        victim("lru", d_model=6, num_layers=2, d_state=4),
        victim("s4d", d_model=6, num_layers=2, d_state=4),
        modern("lru", d_model=6),
        modern("lru", d_model=6, d_state=3, ads="tanh"),
    ],
    ids=["victim", "s4d", "modern", "scaled"],
)
def test_models_keep_the_contract(config):
    check_model(config, shape=(1, 3, 3))


def test_an_lru_learns_to_remember():
    """The first of ten tokens, from the last output; without its state it could not."""
    layer = LRUConfig(d_state=8, r_min=0.9).build(d_model=2, length=10, noise=Noise(0))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x = Noise(1).normal(64, 10, 2)
    losses = []
    for _ in range(150):
        loss = (layer(x)[:, -1] - x[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and losses[-1] < 0.1


def test_settings_survive_json_and_refuse_nonsense():
    config = LRUConfig(d_state=4, form="channelwise", scaling=AdaptiveScalingConfig())
    assert from_dict(LayerConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"must have r_min <= r_max; got 0.9 > 0.5. Swap them"):
        LRUConfig(r_min=0.9, r_max=0.5)
    with pytest.raises(ValueError, match="r_max"):
        LRUConfig(r_max=1.1)
    with pytest.raises(ValueError, match="r_min"):
        LRUConfig(r_min=1.0)
    with pytest.raises(ValueError, match="form"):
        LRUConfig(form="dense")
