"""Tokens: exact inverses, the order of tokens, and the released code's scrambled order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from robustssm.core.config import from_dict, names
from robustssm.core.rng import Noise
from robustssm.models.tokens import LegacyRaster, Patches, Raster, Tokenizer

sizes = st.integers(1, 6)


def ramp(batch, *shape):
    """Every entry its own number, so that any misplacement shows."""
    count = batch * torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).reshape(batch, *shape)


@pytest.mark.parametrize("tokenizer", [Raster(), LegacyRaster()], ids=lambda t: t.name)
@given(batch=sizes, channels=sizes, height=sizes, width=sizes)
def test_pixels_are_inverted_exactly(tokenizer, batch, channels, height, width):
    shape = (channels, height, width)
    x = ramp(batch, *shape)
    tokens = tokenizer.tokens(x)
    assert tokens.shape == (batch, tokenizer.length(shape), tokenizer.channels(shape))
    assert tokens.shape == (batch, height * width, channels)
    assert torch.equal(tokenizer.inverse(tokens, shape), x)


@given(batch=sizes, channels=sizes, rows=sizes, columns=sizes, side=sizes)
def test_patches_are_inverted_exactly(batch, channels, rows, columns, side):
    shape = (channels, rows * side, columns * side)
    patches, x = Patches(side=side), ramp(batch, *shape)
    tokens = patches.tokens(x)
    assert tokens.shape == (batch, patches.length(shape), patches.channels(shape))
    assert tokens.shape == (batch, rows * columns, channels * side * side)
    assert torch.equal(patches.inverse(tokens, shape), x)


@given(channels=sizes, height=sizes, width=sizes)
def test_token_t_is_pixel_t_over_w_and_t_mod_w(channels, height, width):
    x = ramp(2, channels, height, width)
    tokens = Raster().tokens(x)
    for t in range(height * width):
        assert torch.equal(tokens[:, t], x[:, :, t // width, t % width])


@given(channels=sizes, rows=sizes, columns=sizes, side=sizes)
def test_token_t_is_patch_t_over_columns_and_t_mod_columns(channels, rows, columns, side):
    x = ramp(2, channels, rows * side, columns * side)
    tokens = Patches(side=side).tokens(x)
    for t in range(rows * columns):
        top, left = (t // columns) * side, (t % columns) * side
        patch = x[:, :, top : top + side, left : left + side]
        assert torch.equal(tokens[:, t], patch.reshape(2, -1))


def test_a_linear_map_of_patches_is_a_strided_convolution():
    x, weight = Noise(0).normal(2, 3, 8, 12).double(), Noise(1).normal(5, 3, 4, 4).double()
    convolved = F.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2)
    mapped = Patches(side=4).tokens(x) @ weight.reshape(5, -1).T
    torch.testing.assert_close(mapped, convolved, rtol=1e-9, atol=1e-12)


def test_the_released_order_reads_a_colour_image_as_one_flat_row():
    x = ramp(1, 3, 32, 32)  # red 0 ... 1023, green 1024 ... 2047, blue 2048 ... 3071
    legacy, proper = LegacyRaster().tokens(x)[0], Raster().tokens(x)[0]
    assert legacy[:2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert proper[:2].tolist() == [[0, 1024, 2048], [1, 1025, 2049]]
    assert legacy[341].tolist() == [1023, 1024, 1025], "token 341 straddles red and green"
    assert legacy[682].tolist() == [2046, 2047, 2048], "token 682 straddles green and blue"
    assert torch.equal(legacy, x[0].reshape(-1, 3))


@given(height=sizes, width=sizes)
def test_the_released_order_is_right_for_one_channel(height, width):
    x = ramp(2, 1, height, width)
    assert torch.equal(LegacyRaster().tokens(x), Raster().tokens(x))


@pytest.mark.parametrize("tokenizer", [Raster(), LegacyRaster()], ids=lambda t: t.name)
def test_sequences_pass_through(tokenizer):
    x = ramp(2, 7, 3)
    assert torch.equal(tokenizer.tokens(x), x)
    assert torch.equal(tokenizer.inverse(x, (7, 3)), x)
    assert (tokenizer.length((7, 3)), tokenizer.channels((7, 3))) == (7, 3)


@pytest.mark.parametrize("name", names("tokens"))
def test_settings_survive_json(name):
    tokenizer = from_dict(Tokenizer, name)
    assert from_dict(Tokenizer, tokenizer.to_dict()) == tokenizer


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"divide the height and width.*got 28 x 30"):
        Patches(side=4).tokens(ramp(1, 1, 28, 30))
    with pytest.raises(ValueError, match=r"`Patches` must have the shape .*; got \(7, 3\)"):
        Patches().length((7, 3))
    with pytest.raises(ValueError, match=r"`Raster` must have the shape .*; got \(7,\)"):
        Raster().tokens(ramp(2, 7))
    with pytest.raises(ValueError, match=r"side=\.\.\.\)` must be greater than or equal to 1"):
        Patches(side=0)


@pytest.mark.parametrize(
    "tokenizer", [Raster(), LegacyRaster(), Patches(side=2)], ids=lambda t: t.name
)
def test_tokens_of_another_shape_are_not_inverted(tokenizer):
    tokens = tokenizer.tokens(ramp(2, 3, 4, 6))
    with pytest.raises(ValueError, match=r"needs tokens of shape .*Give the shape"):
        tokenizer.inverse(tokens, (3, 4, 4))
