"""The contract of a data set: what everything after reading relies on."""

import json
from pathlib import Path

import torch

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise
from robustssm.data.base import Dataset, Split, Splits

DUPLICATES = 0.01
"""Share of a split whose inputs may occur in another one: real sets hold a few identical images."""


def check_dataset(dataset: Dataset, data_dir: Path | None = None) -> Splits:
    """Reads a data set three times and holds it to its contract.

    Settings survive JSON; reading is deterministic in the noise given and does not use it up; the
    test split does not depend on the noise and validation does; splits are disjoint; shapes, types,
    labels and values are as stated; the origin can be recorded.

    Args:
        dataset: Settings of any data set.
        data_dir: Where its files are, if it needs any.

    Returns:
        The splits, for further checks.

    Raises:
        AssertionError: If it breaks the contract; the message says where.
    """
    assert from_dict(Dataset, to_dict(dataset)) == dataset, "settings must survive to_dict"
    noise = Noise(1)
    splits = dataset.read(data_dir=data_dir, noise=noise)
    again = dataset.read(data_dir=data_dir, noise=noise)
    other = dataset.read(data_dir=data_dir, noise=Noise(2))
    for name in ("train", "validation", "test"):
        _check_split(getattr(splits, name), name, splits)
        assert _equal(getattr(splits, name), getattr(again, name)), (
            f"the {name} split must be the same each time it is read with the same noise"
        )
    assert _equal(splits.test, other.test), "the test split must not depend on the noise"
    assert not _equal(splits.validation, other.validation), "validation must depend on the noise"
    _check_disjoint(splits)
    _check_origin(splits)
    return splits


def _check_split(split: Split, name: str, splits: Splits) -> None:
    assert len(split) > 0, f"the {name} split is empty"
    assert len(split.x) == len(split.y), f"{name}: as many inputs as labels"
    assert tuple(split.x.shape[1:]) == splits.shape, f"{name}: examples of shape {splits.shape}"
    assert split.x.dtype in (torch.uint8, torch.float32), f"{name}: inputs are uint8 or float32"
    assert split.y.dtype == torch.int64, f"{name}: labels are int64"
    assert split.x.device.type == split.y.device.type == "cpu", f"{name}: read into CPU memory"
    assert 0 <= int(split.y.min()) and int(split.y.max()) < splits.num_classes, (
        f"{name}: labels from 0 to {splits.num_classes - 1}"
    )
    if split.x.dtype == torch.uint8:
        assert splits.bounds == (0.0, 1.0), f"{name}: uint8 inputs become floats in [0, 1]"
    else:
        assert torch.isfinite(split.x).all(), f"{name}: finite inputs"
        low, high = splits.bounds
        assert ((split.x >= low) & (split.x <= high)).all(), f"{name}: inputs in the stated bounds"


def _check_disjoint(splits: Splits) -> None:
    rows = {
        name: {row.numpy().tobytes() for row in getattr(splits, name).x}
        for name in ("train", "validation", "test")
    }
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = len(rows[one] & rows[two])
        limit = DUPLICATES * min(len(rows[one]), len(rows[two]))
        assert shared <= limit, f"{shared} inputs are in both {one} and {two}"


def _check_origin(splits: Splits) -> None:
    json.dumps(dict(splits.origin))
    for key in ("source", "licence", "files", "verified", "examples", "remarks"):
        assert key in splits.origin, f"the origin must state `{key}`"
    counts = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
    assert splits.origin["examples"] == counts, f"the origin must state the counts {counts}"


def _equal(one: Split, two: Split) -> bool:
    return torch.equal(one.x, two.x) and torch.equal(one.y, two.y)
