"""Crops and flips against the same thing done image by image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from robustssm.core.rng import Noise, Streams
from robustssm.data.augment import Augmentation


def images(n=5, height=6, width=7, dtype=torch.float32):
    return Noise(0).uniform(n, 2, height, width, low=0.1, dtype=dtype)


def by_hand(x, noise, padding, flip):
    """One image after another: pad, cut out, mirror."""
    places = noise.fork("crop").integers(len(x), 2, high=2 * padding + 1).tolist()
    mirrored = noise.fork("flip").integers(len(x), 1, high=2).flatten().tolist()
    height, width = x.shape[2:]
    result = []
    for image, (top, left), mirror in zip(x, places, mirrored, strict=True):
        cut = F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]
        result.append(cut.flip(-1) if flip and mirror else cut)
    return torch.stack(result)


@given(padding=st.integers(0, 4), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_batch_is_its_images_one_by_one(padding, flip, seed):
    x = images()
    augmented = Augmentation(crop_padding=padding, flip=flip)(x, Noise(seed))
    assert torch.equal(augmented, by_hand(x, Noise(seed), padding, flip))


def test_off_returns_the_argument_itself():
    x, noise = images(), Noise(0)
    assert Augmentation()(x, noise) is x
    sequence = Noise(0).uniform(3, 10, 2)
    assert Augmentation()(sequence, noise) is sequence


def test_every_offset_and_both_sides_occur_and_about_equally_often():
    x = torch.zeros(4500, 1, 5, 5)
    x[:, 0, 2, 2] = 1  # where the one goes tells the offset
    moved = Augmentation(crop_padding=1)(x, Noise(1)).sum((0, 1))
    # A ninth of 4500 each; 5 standard deviations of a binomial are 105.
    assert moved.sum() == 4500 and (moved[1:4, 1:4] - 500).abs().max() < 105
    x[:, 0, 2, 0] = 1
    mirrored = (Augmentation(flip=True)(x, Noise(1))[:, 0, 2, 4] == 1).sum()
    assert abs(int(mirrored) - 2250) < 168


def test_zeros_come_in_from_the_border():
    shifted = Augmentation(crop_padding=3)(images(200), Noise(2))
    assert (shifted == 0).any() and set(shifted.unique().tolist()) <= {
        0.0,
        *images(200).unique().tolist(),
    }


def test_each_image_has_its_own_stream_whatever_its_batch():
    x, augmentation = images(8), Augmentation(crop_padding=2, flip=True)
    streams = Streams(0)

    def run(rows):
        return augmentation(x[rows], streams.examples("augment", indices=rows))

    whole = run(torch.arange(8))
    assert torch.equal(run(torch.tensor([5, 2])), whole[[5, 2]])


def test_flips_do_not_move_the_crops():
    x = images(50)
    cropped = Augmentation(crop_padding=2)(x, Noise(4))
    both = Augmentation(crop_padding=2, flip=True)(x, Noise(4))
    same = (both == cropped).flatten(1).all(1)
    assert 0 < same.sum() < 50
    assert torch.equal(both[~same], cropped[~same].flip(-1))


def test_type_and_argument_are_kept():
    x = images(dtype=torch.float64)
    before = x.clone()
    assert Augmentation(flip=True)(x, Noise(0)).dtype == torch.float64
    assert torch.equal(x, before)


def test_sequences_are_refused():
    message = r"must be images \(batch, channels, height, width\); got shape \(3, 10, 2\)"
    with pytest.raises(ValueError, match=message):
        Augmentation(flip=True)(Noise(0).uniform(3, 10, 2), Noise(0))


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Augmentation(crop_padding=-1)


@pytest.mark.gpu
def test_augmented_on_a_gpu_as_on_the_cpu():
    augmentation = Augmentation(crop_padding=2, flip=True)
    there = augmentation(images().cuda(), Noise(0))
    assert torch.equal(there.cpu(), augmentation(images(), Noise(0)))
