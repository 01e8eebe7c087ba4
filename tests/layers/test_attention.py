"""Attention against torch's own, and what its positions and its mask let through."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise
from robustssm.layers.attention import AttentionConfig, RelativeBias
from robustssm.layers.base import LayerConfig

F64 = torch.float64


def build(length=16, d_model=6, **settings):
    config = AttentionConfig(**settings)
    layer = config.build(d_model=d_model, length=length, noise=Noise(0)).double()
    if layer.bias is not None:  # large enough to be seen
        layer.bias.table.data *= 50
    return layer


def torchs_own(layer, x):
    """scaled_dot_product_attention with a bias written entry by entry."""
    heads, length = layer.config.heads, x.shape[1]
    q, k, v = rearrange(layer.qkv(x), "b l (p h c) -> p b h l c", p=3, h=heads)
    bias = torch.zeros(heads, length, length, dtype=x.dtype)
    for t in range(length):
        for s in range(length):
            if layer.bias is not None:
                bias[:, t, s] = layer.bias.table[:, layer.bias.length - 1 + s - t]
            if layer.config.causal and s > t:
                bias[:, t, s] = -torch.inf
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(x), -1, -1, -1))
    return layer.out(rearrange(y, "b h l c -> b l (h c)"))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("relative_bias", [False, True])
@pytest.mark.parametrize("batch, length", [(1, 1), (2, 13), (1, 16)])
def test_layer_is_torchs_attention(heads, causal, relative_bias, batch, length):
    layer = build(heads=heads, causal=causal, relative_bias=relative_bias)
    x = Noise(1).normal(batch, length, 6, dtype=F64).requires_grad_()
    v = Noise(2).normal(batch, length, 6, dtype=F64)
    inputs = [x, *layer.parameters()]
    expected = torchs_own(layer, x)
    gradients = torch.autograd.grad(expected, inputs, v)
    for y in (layer(x), layer.reference(x)):
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)
        for got, want in zip(torch.autograd.grad(y, inputs, v), gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_order_is_unseen_without_positions_only():
    x = Noise(3).normal(1, 9, 6, dtype=F64)
    blind, seeing = build(relative_bias=False), build(relative_bias=True)
    torch.testing.assert_close(blind(x.flip(1)), blind(x).flip(1))
    assert not torch.allclose(seeing(x.flip(1)), seeing(x).flip(1), rtol=1e-3)


def test_relative_bias_shifts_with_the_pair():
    bias = RelativeBias(heads=2, length=5, noise=Noise(0))
    with torch.no_grad():
        bias.table.copy_(torch.arange(18.0).view(2, 9))
    expected = torch.tensor([[4.0, 5, 6], [3, 4, 5], [2, 3, 4]])
    assert torch.equal(bias(3), torch.stack([expected, expected + 9]))
    with bias.frozen():
        assert bias(3) is bias(3) and not bias(3).requires_grad


def test_longer_sequences_than_planned_are_refused():
    layer = build(length=4)
    with pytest.raises(ValueError, match="reach over 4 tokens; got a sequence of 5"):
        layer(torch.zeros(1, 5, 6, dtype=F64))
    assert build(length=4, relative_bias=False)(torch.zeros(1, 5, 6, dtype=F64)).shape == (1, 5, 6)


def test_settings_survive_json_and_refuse_nonsense():
    config = AttentionConfig(heads=2, causal=True, relative_bias=False)
    assert from_dict(LayerConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"must divide d_model.*Try heads=2"):
        build(heads=4)


def test_no_state_equation():
    assert build().recurrence(torch.zeros(1, 3, 6, dtype=F64)) is None
