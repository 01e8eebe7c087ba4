"""The plain path computes what our layers do, in float64; and not by the same code."""

import pytest
import torch
from torch import nn

from benchmarks import pairs, plain
from benchmarks.harness import gap, gradients
from benchmarks.report import Report, arguments
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.moving_average import MovingAverage
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config

pytestmark = pytest.mark.usefixtures("machine_left_alone")

LENGTH, CHANNELS = 20, 3
NEAR = 1e-9


def build(config):
    return config.build(d_model=CHANNELS, length=LENGTH, noise=Noise(0)).double()


def sequences():
    return Noise(1).normal(2, LENGTH, CHANNELS, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("config", [S4Config(d_state=6), DSSConfig(d_state=6)], ids=["s4", "dss"])
def test_a_layer_is_ours(config):
    layer, x = build(config), sequences()
    other = plain.Layer(layer, LENGTH)
    assert gap(other.kernel(LENGTH), layer.kernel(LENGTH, dtype=torch.float64)) < NEAR
    g = torch.ones_like(x)
    shared = (
        {"x"} | {"D"} | (set(dict(layer.named_parameters())) if config.name == "dss" else set())
    )
    mine, theirs = (
        gradients(m(x), {"x": x, **{n: p for n, p in m.named_parameters() if n in shared}}, g)
        for m in (layer, other)
    )
    for key, value in mine.items():
        assert gap(value, theirs[key]) < NEAR, key


def test_c_of_s4_leads_back_through_the_length():
    """The gradient of C, once the table's own C is a function of it."""
    layer = build(S4Config(d_state=6))
    dt = layer.log_dt.exp()
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    P, B, C = (torch.view_as_complex(v) for v in (layer.P, layer.B, layer.C))
    kernel = plain.s4_kernel(a, P, B, plain.truncated(a, P, C, dt, LENGTH), dt, LENGTH)
    named = {n: p for n, p in layer.named_parameters() if n != "D"}
    g = Noise(2).normal(CHANNELS, LENGTH, dtype=torch.float64)
    theirs = gradients(kernel, named, g)
    mine = gradients(layer.kernel(LENGTH, dtype=torch.float64), named, g)
    for key, value in mine.items():
        assert gap(value, theirs[key]) < 1e-8, key


def test_kernel_of_s4d_and_convolution_are_ours():
    layer, x = build(S4DConfig(d_state=6)), sequences()
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    kernel = plain.s4d_kernel(a, torch.view_as_complex(layer.C), layer.log_dt.exp(), LENGTH)
    assert gap(plain.convolution(x, kernel) + layer.D * x, layer(x)) < NEAR


def test_moving_average_is_ours():
    layer = MovingAverage(d_model=CHANNELS, d_state=4, directions=2, noise=Noise(0)).double()
    x = sequences()
    found = plain.moving_average(x, **dict(layer.named_parameters()))
    assert gap(found, layer(x)) < NEAR


@pytest.mark.parametrize("layer", [S5Config(d_state=4), None], ids=["s5", "scaled"])
def test_other_layers_are_refused(layer):
    scaled = S4Config(d_state=4, scaling=AdaptiveScalingConfig(activation="relu"))
    with pytest.raises(ValueError, match="must be S4 or DSS"):
        plain.Layer(build(layer or scaled), LENGTH)


@pytest.fixture(params=["s4", "dss"])
def pair(request):
    parsed = arguments("", ["--tiny"])
    return pairs.make(request.param, Report("a pair", parsed), parsed, batch=2)


def test_a_classifier_is_ours_and_has_all_its_parameters(pair):
    exact = pair.exact_results()
    assert {"logits", "d x", "d head.weight", "d blocks.1.layer.D"} <= set(exact)
    assert ("d blocks.0.layer.C" in exact) == (pair.structure == "dss")
    pair.ours.double()
    mine = {n: p for n, p in pair.ours.named_parameters() if n in pair.shared}
    found = pairs.results(pair.ours, pair.x.double(), pair.y, mine)
    for key, value in exact.items():
        assert gap(found[key], value) < 1e-8, key
    assert set(dict(pair.peer.parameters_as_ours())) == set(dict(pair.ours.named_parameters()))


def test_the_float32_gaps_are_far_below_the_tolerances(pair):
    exact = pair.exact_results()
    for key, value in pair.our_results().items():
        assert gap(value, exact[key]) < pairs.TOLERANCE, key


def test_the_attack_is_ours(pair):
    """From the same start, in float64, both end at the same points."""
    attack = PGD(steps=3, step_size=pairs.STEP / pairs.EPS, start="none", keep="last")
    model, x = pair.ours.double().eval(), pair.x.double()
    mine = attack(model, x, pair.y, threat=Threat(eps=pairs.EPS), noise=Noise(0))
    other = plain.Classifier(model).double()
    theirs = plain.pgd(other, x, pair.y, start=x, eps=pairs.EPS, step=pairs.STEP, steps=3)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert (mine - x).abs().max() > 0.5 * pairs.EPS


def test_the_peer_attacks_within_eps(pair):
    x_adv = pair.attack(pair.x, pair.y, 2)
    assert 0 < (x_adv - pair.x).abs().max() <= pairs.EPS * (1 + 1e-5)
    assert all(p.grad is None for p in pair.peer.parameters())
    assert isinstance(pair.peer, nn.Module)
