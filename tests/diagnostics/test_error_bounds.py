"""Error bounds of layers: against what the model does, and against attacks on the layers."""

import pytest
import torch

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.diagnostics.base import Subject
from robustssm.diagnostics.capture import capture
from robustssm.diagnostics.error_bounds import ErrorBounds
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s5 import S5Config
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.ops.recurrence import run
from robustssm.records import violations

LENGTH, BATCH = 20, 6
LINEAR = [S4Config(d_state=4), DSSConfig(d_state=4), S5Config(d_state=4), MegaConfig(d_state=2)]


def model(layer, *, num_layers=2, length=LENGTH):
    made = SequenceClassifierConfig(
        layer=layer, d_model=4, num_layers=num_layers, block=BlockConfig()
    )
    return made.build(shape=(length, 2), num_classes=3, noise=Noise(1)).double()


def subject(network, *, eps=0.1, batch=BATCH, length=LENGTH):
    return Subject(
        network,
        Noise(2).uniform(batch, length, 2, dtype=torch.float64),
        Noise(3).integers(batch, high=3),
        threat=Threat(eps=eps),
        attack=PGD(steps=3),
        noise=Noise(4, torch.arange(batch)),
    )


@pytest.mark.parametrize("layer", LINEAR, ids=lambda layer: layer.name)
def test_the_measured_error_is_what_the_network_does(layer):
    looked = subject(model(layer))
    found = ErrorBounds().measure(looked)
    parts = [
        {a.place.layer: a for a in capture(looked.model, x) if a.place.part == "ssm"}
        for x in (looked.x, looked.x_adv)
    ]
    for number in (0, 1):
        moved = parts[1][number].after - parts[0][number].after
        expected = moved.square().sum((1, 2)).mean().item()
        at = {"layer": str(number)}
        assert found.quantity("measured").at(**at) == pytest.approx(expected, rel=1e-9)
        assert found.quantity("exact").at(**at) == pytest.approx(expected, rel=1e-9)
        largest = moved.abs().max().item()
        assert found.quantity("largest").at(**at) == pytest.approx(largest, rel=1e-9)
        pooled = moved.mean(1).abs().max().item()
        assert found.quantity("pooled").at(**at) == pytest.approx(pooled, rel=1e-9)
    assert violations(found, tolerance=1e-9) == ()


@pytest.mark.parametrize("layer", LINEAR, ids=lambda layer: layer.name)
def test_an_attack_on_the_same_functional_reaches_the_exact_gains_and_no_more(layer):
    """Ascent by signs on what the gains bound: the layer's pooled output, one output at a time."""
    looked = subject(model(layer, num_layers=1))
    found = ErrorBounds().measure(looked)
    system = looked.model.blocks[0].layer.recurrence(torch.zeros(1, LENGTH, 4).double())
    shift = torch.zeros(4, LENGTH, 4, dtype=torch.float64)
    for _ in range(3):
        shift = shift.detach().requires_grad_()
        pooled = run(system, shift).mean(1).diagonal().sum()
        (slope,) = torch.autograd.grad(pooled, shift)
        shift = (shift + slope.sign()).clamp(-1, 1)
    reached = run(system, shift).mean(1).diagonal().max().item()
    assert reached == pytest.approx(found.quantity("pooled_gain").at(layer="0"), rel=1e-9)


def test_without_a_perturbation_nothing_is_measured_and_every_bound_is_zero():
    found = ErrorBounds().measure(subject(model(S4Config(d_state=4)), eps=0.0))
    for name in ("measured", "exact", "upper_l1", "largest_bound", "amplification", "monte_carlo"):
        assert set(found.quantity(name).values) == {0.0}
    assert all(value > 0 for value in found.quantity("l2_gain").values)


def test_an_unstable_layer_has_finite_gains_and_no_infinite_one():
    network = model(DSSConfig(d_state=4), num_layers=1)
    with torch.no_grad():
        network.blocks[0].layer.w[..., 0] = 0.05
    found = ErrorBounds().measure(subject(network))
    assert found.quantity("spectral_radius").at(layer="0") > 1
    assert found.quantity("h_infinity").at(layer="0") is None
    assert found.quantity("l2_gain").at(layer="0") > 0
    assert "modulus 1." in found.remarks[0]
    assert violations(found, tolerance=1e-9) == ()


def test_layers_that_follow_their_input_are_refused_by_name():
    with pytest.raises(Inapplicable, match=r"Mamba.*error_growth"):
        ErrorBounds().measure(subject(model(MambaConfig(d_state=2))))
    with pytest.raises(Inapplicable, match="Attention"):
        ErrorBounds().measure(subject(model(AttentionConfig(heads=1))))


def test_a_single_example():
    found = ErrorBounds(examples=1).measure(subject(model(S4Config(d_state=4))))
    assert violations(found, tolerance=1e-9) == ()


@pytest.mark.parametrize("layer", LINEAR, ids=lambda layer: layer.name)
def test_a_sequence_of_one_token(layer):
    found = ErrorBounds().measure(subject(model(layer, length=1), length=1))
    assert violations(found, tolerance=1e-9) == ()
    assert found.quantity("measured").at(layer="0") > 0
    exact, measured = (found.quantity(name).values for name in ("exact", "measured"))
    assert exact == pytest.approx(measured, rel=1e-9)
