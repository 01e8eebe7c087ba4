"""Adaptive scaling: its forms, its parameter counts, and the identity start."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig


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
