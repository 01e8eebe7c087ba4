"""Adaptive scaling: its forms, its parameter counts, and the identity start."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.s4 import S4Config
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.testing.layers import check_layer
from robustssm.testing.models import check_model


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("form", ["scale", "scale_shift"])
def test_identity_start_is_the_identity(activation, form):
    config = AdaptiveScalingConfig(activation=activation, form=form, bias=True, initial="identity")
    module = config.build(d_model=5, noise=Noise(0))
    y = Noise(1).normal(2, 7, 5)
    torch.testing.assert_close(module(y), y, rtol=0, atol=1e-6)


def test_identity_without_bias_is_refused():
    with pytest.raises(ValueError, match="must have bias=True"):
        AdaptiveScalingConfig(initial="identity")


def test_scale_is_the_formula_of_the_paper():
    module = AdaptiveScalingConfig(activation="tanh").build(d_model=3, noise=Noise(0))
    y = Noise(1).normal(4, 3)
    expected = torch.tanh(y @ module.scale.weight.T) * y
    torch.testing.assert_close(module(y), expected)


def test_released_form_has_two_biased_maps():
    module = AdaptiveScalingConfig(form="scale_shift", bias=True).build(d_model=128, noise=Noise(0))
    assert sum(p.numel() for p in module.parameters()) == 2 * (128 * 128 + 128)


def test_shift_and_both_are_sums_in_float64():
    y = Noise(1).normal(4, 3, dtype=torch.float64)
    shift = AdaptiveScalingConfig(form="shift", bias=True).build(d_model=3, noise=Noise(0)).double()
    assert shift.scale is None
    shifted = torch.relu(y @ shift.shift.weight.T + shift.shift.bias)
    torch.testing.assert_close(shift(y), y + shifted, rtol=1e-12, atol=0)
    both = AdaptiveScalingConfig(form="scale_shift").build(d_model=3, noise=Noise(0)).double()
    expected = torch.relu(y @ both.scale.weight.T) * y + torch.relu(y @ both.shift.weight.T)
    torch.testing.assert_close(both(y), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["scale", "shift", "scale_shift"])
def test_frozen_maps_are_the_same_draws_but_no_parameters(form):
    settings = {"form": form, "bias": True}
    trained, frozen = (
        AdaptiveScalingConfig(**settings, trainable=trainable).build(d_model=3, noise=Noise(0))
        for trainable in (True, False)
    )
    assert not list(frozen.parameters())
    assert frozen.state_dict().keys() == trained.state_dict().keys()
    y = Noise(1).normal(2, 5, 3)
    assert torch.equal(frozen(y), trained(y))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_a_shift_can_start_as_nothing(activation):
    config = AdaptiveScalingConfig(
        activation=activation, form="shift", initial="identity", bias=activation == "sigmoid"
    )
    y = Noise(1).normal(2, 7, 5)
    shifted = config.build(d_model=5, noise=Noise(0))(y)
    torch.testing.assert_close(shifted, y, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="must have bias=True"):
        AdaptiveScalingConfig(activation="sigmoid", form="shift", initial="identity")


@pytest.mark.parametrize(
    "scaling",
    [
        AdaptiveScalingConfig(form="shift"),
        AdaptiveScalingConfig(trainable=False),
        AdaptiveScalingConfig(form="scale_shift", bias=True, trainable=False),
    ],
    ids=["shift", "frozen", "frozen both"],
)
def test_layers_and_fused_blocks_take_every_form(scaling):
    layer = S4Config(d_state=4, scaling=scaling)
    check_layer(layer)
    model = SequenceClassifierConfig(layer=layer, d_model=8, num_layers=1)
    check_model(model, shape=(1, 3, 3))  # `frozen` changes no number, in float64
    built = model.build(shape=(1, 3, 3), num_classes=3, noise=Noise(0))
    x = Noise(1).uniform(2, 1, 3, 3)
    expected = built(x)
    with built.frozen():
        torch.testing.assert_close(built(x), expected, rtol=1e-5, atol=1e-6)
