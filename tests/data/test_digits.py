"""The embedded digits: exact values, and a test split that no seed moves."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from robustssm.core.config import override
from robustssm.core.rng import Noise
from robustssm.data.digits import Digits


def read(seed=0, **settings):
    return Digits(**settings).read(data_dir=None, noise=Noise(seed))


def test_values_are_sixteenths_and_together_they_are_scikit_learns():
    splits = read()
    parts = (splits.train, splits.validation, splits.test)
    x = torch.cat([part.x for part in parts]).squeeze(1)
    y = torch.cat([part.y for part in parts])
    assert x.dtype == torch.float32
    ours = np.concatenate([(x * 16).flatten(1).numpy(), y[:, None].numpy()], 1)
    bunch = load_digits()
    theirs = np.concatenate([bunch.data, bunch.target[:, None]], 1)
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_sizes_are_the_settings_and_classes_are_balanced():
    splits = read()
    assert splits.origin["examples"] == {"train": 1097, "validation": 200, "test": 500}
    assert splits.shape == (1, 8, 8) and splits.bounds == (0.0, 1.0)
    assert splits.test.y.bincount().tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert splits.validation.y.bincount().tolist() == [20] * 10


def test_scikit_learns_copy_is_the_one_we_know():
    assert read().origin["verified"] is True


def test_neither_seed_nor_validation_nor_limit_moves_the_test_split():
    first = read(seed=0)
    second = read(seed=1, validation=50, train_limit=100)
    assert torch.equal(first.test.x, second.test.x) and torch.equal(first.test.y, second.test.y)
    assert not torch.equal(first.validation.x, read(seed=1).validation.x)


def test_the_test_split_is_pinned():
    # Figures are published on these 500 examples: a change here changes them all.
    test = read().test
    pixels = (test.x * 16).byte().numpy().tobytes()
    digest = hashlib.sha256(pixels + test.y.byte().numpy().tobytes()).hexdigest()
    assert digest.startswith("1bdf5fc8aefac85e")


def test_too_many_examples_asked_for_are_refused():
    with pytest.raises(ValueError, match=r"add up to less than 1797.*got 1500 \+ 297"):
        Digits(test=1500, validation=297)


def test_an_empty_test_split_cannot_be_set():
    with pytest.raises(
        ValueError, match=r"`Digits\(test=...\)` must be greater than or equal to 1"
    ):
        override(Digits(), {"test": "0"})
