"""What every data set refuses, whoever wrote it."""

import dataclasses

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.data.base import Split, Splits


def some(n=6, *shape, low=0.0, high=1.0):
    x = Noise(0).uniform(n, *(shape or (1, 4, 4)), low=low, high=high)
    return Split(x, torch.arange(n) % 3)


def splits(**changes):
    fields = {"train": some(), "validation": some(), "test": some(), "num_classes": 3}
    fields |= {"shape": (1, 4, 4), "bounds": (0.0, 1.0), "origin": {"source": "mine"}}
    return Splits(**(fields | changes))


def test_sound_splits_are_accepted():
    assert len(splits().train) == 6


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named_with_its_row(label):
    bad = some()
    bad.y[4] = label
    message = f"Labels in the test split of mine must be integers from 0 to 2; got {label} in row 4"
    with pytest.raises(ValueError, match=message):
        splits(test=bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_with_its_row(value):
    bad = some()
    bad.x[2, 0, 1, 1] = bad.x[5, 0, 0, 0] = value
    message = (
        rf"train split of mine must be finite in float32; got {value} in row 2 \(2 such rows\)"
    )
    with pytest.raises(ValueError, match=message):
        splits(train=bad)


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_a_value_out_of_bounds_is_named_with_its_row(value):
    bad = some()
    bad.x[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"must lie in the bounds \[0.0, 1.0\]; .* first in row 3"):
        splits(validation=bad)


def test_bounds_are_compared_in_the_type_of_the_data():
    x = torch.full((3, 1, 4, 4), 0.1)  # float32(0.1) > 0.1
    assert x.double().max() > 0.1
    same = Split(x, torch.arange(3))
    splits(train=same, validation=same, test=same, bounds=(0.0, 0.1))


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="The validation split of mine must not be empty"):
        splits(validation=some().take(slice(0)))


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(1, 4, 4\); got \(2, 4, 4\)"):
        splits(test=some(6, 2, 4, 4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_classes": 1}, "must have 2 classes or more; got 1"),
        ({"bounds": (1.0, 1.0)}, r"low < high; got \(1.0, 1.0\)"),
    ],
)
def test_impossible_statements_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        splits(**changes)


def test_uint8_inputs_have_the_bounds_that_batches_give_them():
    stored = Split((some().x * 255).byte(), some().y)
    whole = {"train": stored, "validation": stored, "test": stored}
    splits(**whole)
    with pytest.raises(ValueError, match=r"`bounds` of uint8 inputs must be \(0.0, 1.0\)"):
        splits(**whole, bounds=(-1.0, 1.0))


def test_splits_of_different_types_are_refused():
    stored = Split((some().x * 255).byte(), some().y)
    with pytest.raises(ValueError, match=r"stored in one type; got torch.float32, torch.uint8"):
        splits(test=stored)


def test_take_keeps_the_order_of_the_rows():
    split = some()
    taken = split.take(torch.tensor([4, 0]))
    torch.testing.assert_close(taken.x, torch.stack([split.x[4], split.x[0]]), rtol=0, atol=0)
    assert taken.y.tolist() == [1, 0] and len(taken) == 2


def test_a_split_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        some().x = torch.zeros(1)
