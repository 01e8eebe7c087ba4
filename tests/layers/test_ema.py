"""The moving average as a layer: Mega's, and its equations written out."""

import math

import torch

from robustssm.core.rng import Noise
from robustssm.layers.ema import EMAConfig
from robustssm.layers.mega import MegaConfig


def written_out(average, x, direction):
    """Equations 5 to 7 of the source, one number at a time, without the skip."""
    p = torch.sigmoid(average.delta[direction])
    q = 1 - p * torch.sigmoid(average.alpha[direction])
    beta, gamma = average.beta[direction], average.gamma[direction]
    y = torch.zeros_like(x)
    h = torch.zeros(x.shape[0], *p.shape, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = q * h + p * beta * x[:, t, :, None]
        y[:, t] = (gamma * h).sum(-1) / math.sqrt(p.shape[-1])
    return y


def test_causal_form_is_the_recurrence_of_the_source():
    layer = EMAConfig(d_state=3, bidirectional=False).build(d_model=4, length=9, noise=Noise(0))
    layer = layer.double()
    x = Noise(1).normal(2, 9, 4, dtype=torch.float64)
    expected = written_out(layer.average, x, 0) + layer.average.omega * x
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-12)


def test_both_ways_are_added_and_the_skip_counts_once():
    layer = EMAConfig(d_state=3).build(d_model=4, length=9, noise=Noise(0)).double()
    x = Noise(1).normal(2, 9, 4, dtype=torch.float64)
    expected = written_out(layer.average, x, 0) + written_out(layer.average, x.flip(1), 1).flip(1)
    expected += layer.average.omega * x
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-12)


def test_it_is_the_average_inside_mega():
    mega = MegaConfig(d_state=3).build(d_model=4, length=9, noise=Noise(0))
    layer = EMAConfig(d_state=3).build(d_model=4, length=9, noise=Noise(0))
    x = Noise(1).normal(2, 9, 4)
    assert torch.equal(layer(x), mega.average(x))
    assert layer.roles() == {k: v for k, v in mega.roles().items() if k.startswith("average")}
