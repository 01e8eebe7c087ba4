"""A layer in both directions is one layer plus its mirror image."""

import pytest
import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.base import LayerConfig
from robustssm.layers.bidirectional import BidirectionalConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s5 import S5Config
from robustssm.ops.recurrence import run

INNER = [S5Config(d_state=4), MambaConfig(d_state=3), MegaConfig(bidirectional=False)]


def build(inner, length=20):
    config = BidirectionalConfig(layer=inner)
    return config.build(d_model=4, length=length, noise=Noise(0)).double()


@pytest.mark.parametrize("inner", INNER, ids=lambda config: config.name)
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 11)])
def test_it_is_forward_plus_flipped(inner, batch, length):
    layer = build(inner)
    x = Noise(1).normal(batch, length, 4, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(length):  # each half sees exactly its own side
        expected[:, t] += layer.ahead(x[:, : t + 1])[:, -1]
        expected[:, t] += layer.behind(x[:, t:].flip(1))[:, -1]
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.reference(x), expected, rtol=1e-9, atol=1e-12)


def test_the_two_directions_have_parameters_of_their_own():
    layer = build(S5Config(d_state=4))
    assert not torch.equal(layer.ahead.B, layer.behind.B)
    one = sum(
        p.numel()
        for p in S5Config(d_state=4).build(d_model=4, length=8, noise=Noise(0)).parameters()
    )
    assert sum(p.numel() for p in layer.parameters()) == 2 * one
    assert layer.roles()["behind.log_dt"] == "dynamics"


def test_recurrence_holds_both_directions():
    layer = build(S5Config(d_state=4))
    x = Noise(2).normal(2, 9, 4, dtype=torch.float64)
    recurrence = layer.recurrence(x)
    assert len(recurrence.directions) == 2
    torch.testing.assert_close(run(recurrence, x), layer(x), rtol=1e-9, atol=1e-12)


def test_directions_with_signals_of_their_own_are_no_single_recurrence():
    layer = build(MambaConfig(d_state=3))
    x = Noise(2).normal(2, 9, 4, dtype=torch.float64)
    with pytest.raises(Inapplicable, match="different inner signals"):
        layer.recurrence(x)
    assert layer.ahead.recurrence(x).u.shape == (2, 9, 8)
    attention = build(AttentionConfig(causal=True))
    assert attention.recurrence(x) is None


def test_only_causal_layers_can_be_turned():
    for inner in (MegaConfig(), AttentionConfig(), BidirectionalConfig()):
        with pytest.raises(ValueError, match="must be causal"):
            build(inner)


def test_settings_survive_json():
    config = BidirectionalConfig(layer=MambaConfig(d_state=3))
    assert from_dict(LayerConfig, to_dict(config)) == config
