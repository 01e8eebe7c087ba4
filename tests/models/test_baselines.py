"""The Transformer and the convolutional network: the contract, and their parts by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from robustssm.core.rng import Noise
from robustssm.layers.attention import AttentionConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.cnn import CNNConfig
from robustssm.models.positions import sines
from robustssm.models.tokens import Patches
from robustssm.models.transformer import TransformerConfig
from robustssm.testing.models import check_model


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(d_model=8, num_layers=1),
        TransformerConfig(d_model=6, heads=3, d_ffn=5, tokens=Patches(side=2)),
        CNNConfig(width=3, num_layers=3),
        CNNConfig(width=4, num_layers=1),
    ],
    ids=["transformer", "transformer of patches", "cnn", "cnn of one layer"],
)
def test_the_contract(config):
    check_model(config, shape=(2, 4, 4))


def test_a_transformer_reads_sequences_as_well():
    check_model(TransformerConfig(d_model=8, num_layers=1), shape=(7, 2))


def test_positions_are_the_sines_of_the_source():
    table = sines(5, 6)
    for t in range(5):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), rel=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), rel=1e-12)


def test_only_the_positions_tell_tokens_apart():
    model = TransformerConfig(d_model=8, num_layers=2).build(
        shape=(6, 2), num_classes=3, noise=Noise(0)
    )
    model = model.double()
    x = Noise(1).uniform(2, 6, 2).double()
    assert (model(x) - model(x.flip(1))).abs().max() > 1e-4
    model.positions.zero_()
    torch.testing.assert_close(model(x), model(x.flip(1)), rtol=0, atol=1e-12)


def test_sines_need_pairs_of_channels():
    config = SequenceClassifierConfig(layer=AttentionConfig(), d_model=7, positions="sines")
    with pytest.raises(ValueError, match="even d_model"):
        config.build(shape=(6, 2), num_classes=3, noise=Noise(0))


def test_a_network_of_two_convolutions_by_hand():
    model = CNNConfig(width=3, num_layers=2).build(shape=(2, 5, 4), num_classes=3, noise=Noise(0))
    model = model.double()
    x = Noise(1).uniform(2, 2, 5, 4).double()
    first, (second,) = model.input, model.convolutions
    h = F.conv2d(x, first.weight, first.bias, padding=1).relu()
    h = F.conv2d(h, second.weight, second.bias, stride=2, padding=1).relu()
    expected = F.linear(h.flatten(2).mean(-1), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)
    assert model.embed(x).shape == (2, 20, 3)


def test_embeddings_are_affine_so_that_yopo_may_step_through_them():
    for config in (CNNConfig(), TransformerConfig(d_model=8)):
        model = config.build(shape=(1, 4, 4), num_classes=3, noise=Noise(0)).double()
        x, z = Noise(1).uniform(2, 1, 4, 4).double(), Noise(2).uniform(2, 1, 4, 4).double()
        middle = (model.embed(x) + model.embed(z)) / 2
        torch.testing.assert_close(model.embed((x + z) / 2), middle, rtol=1e-9, atol=1e-12)


def test_a_network_of_convolutions_refuses_sequences():
    with pytest.raises(ValueError, match="must be that of an image"):
        CNNConfig().build(shape=(64, 1), num_classes=3, noise=Noise(0))
