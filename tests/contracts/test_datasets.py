"""Every registered data set, on miniature files, keeps its contract; a broken one is caught."""

import dataclasses
from pathlib import Path

import pytest
import torch

from robustssm.core import config
from robustssm.core.config import lookup, names, settings
from robustssm.core.rng import Noise
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.digits import Digits
from robustssm.data.mnist import MNIST
from robustssm.testing.datasets import check_dataset
from robustssm.testing.miniatures import MINIATURES, write_cifar10


@pytest.mark.parametrize("name", names("dataset"))
def test_every_data_set_keeps_the_contract(name, tmp_path):
    assert name in MINIATURES, f"testing/miniatures.py needs a miniature of '{name}'"
    dataset = MINIATURES[name](tmp_path)
    assert isinstance(dataset, lookup("dataset", name))
    check_dataset(dataset, tmp_path)


def test_the_other_forms_keep_it_too(tmp_path):
    check_dataset(write_cifar10(tmp_path, python=True), tmp_path)
    MINIATURES["mnist"](tmp_path)
    check_dataset(MNIST(pool=4, validation=10, train_limit=20, verify=False), tmp_path)


@pytest.mark.parametrize("name", names("dataset"))
def test_every_data_set_names_its_source(name):
    assert "Source: " in (lookup("dataset", name).__doc__ or "")


@settings
class Broken(Dataset):
    """The digits, with one promise broken."""

    how: str

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """The digits, spoilt."""
        splits = Digits().read(data_dir=data_dir, noise=noise)
        return getattr(self, f"_{self.how}")(splits, noise)

    def _nothing(self, splits: Splits, noise: Noise) -> Splits:
        return splits

    def _moving_test(self, splits: Splits, noise: Noise) -> Splits:
        return dataclasses.replace(splits, test=splits.test.take(noise.fork("x").permutation(500)))

    def _used_up_noise(self, splits: Splits, noise: Noise) -> Splits:
        return dataclasses.replace(splits, train=splits.train.take(noise.permutation(1097)))

    def _fixed_validation(self, splits: Splits, noise: Noise) -> Splits:
        return Digits().read(data_dir=None, noise=Noise(0))

    def _leak(self, splits: Splits, noise: Noise) -> Splits:
        x = torch.cat([splits.train.x, splits.validation.x])
        y = torch.cat([splits.train.y, splits.validation.y])
        return dataclasses.replace(splits, train=Split(x, y))

    def _float64(self, splits: Splits, noise: Noise) -> Splits:
        double = {
            name: Split(getattr(splits, name).x.double(), getattr(splits, name).y)
            for name in ("train", "validation", "test")
        }
        return dataclasses.replace(splits, **double)

    def _int32_labels(self, splits: Splits, noise: Noise) -> Splits:
        return dataclasses.replace(splits, test=Split(splits.test.x, splits.test.y.int()))

    def _no_licence(self, splits: Splits, noise: Noise) -> Splits:
        origin = {key: value for key, value in splits.origin.items() if key != "licence"}
        return dataclasses.replace(splits, origin=origin)

    def _wrong_counts(self, splits: Splits, noise: Noise) -> Splits:
        return dataclasses.replace(splits, train=splits.train.take(slice(0, 1000)))


@pytest.mark.parametrize(
    "how, message",
    [
        ("moving_test", "the test split must not depend on the noise"),
        ("used_up_noise", "train split must be the same each time"),
        ("fixed_validation", "validation must depend on the noise"),
        ("leak", "200 inputs are in both train and validation"),
        ("float64", "inputs are uint8 or float32"),
        ("int32_labels", "test: labels are int64"),
        ("no_licence", "the origin must state `licence`"),
        ("wrong_counts", "the origin must state the counts"),
    ],
)
def test_a_broken_promise_is_caught(monkeypatch, how, message):
    monkeypatch.setattr(Broken, "name", "broken", raising=False)
    monkeypatch.setitem(config._registry["dataset"], "broken", Broken)
    check_dataset(Broken(how="nothing"))
    with pytest.raises(AssertionError, match=message):
        check_dataset(Broken(how=how))
