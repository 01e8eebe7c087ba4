"""Anybody's arrays: layouts, what is taken from the data, and everything that is refused."""

import json

import numpy as np
import pytest
import torch

from robustssm.core.config import from_dict, override, to_dict
from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data.archive import checksum_of
from robustssm.data.arrays import Arrays
from robustssm.data.base import Dataset


def some(n=40, *shape):
    return Noise(n).uniform(n, *(shape or (6, 2)), low=-1.0, high=2.0).numpy()


def labels(n=40, classes=4):
    return np.arange(n) % classes


def save(folder, **arrays):
    np.savez(folder / "mine.npz", **({"x": some(), "y": labels()} | arrays))
    return folder


def read(folder, seed=0, **settings):
    dataset = Arrays(**({"path": "mine.npz", "validation": 8} | settings))
    return dataset.read(data_dir=folder, noise=Noise(seed))


def every(splits):
    return torch.cat([splits.train.x, splits.validation.x, splits.test.x])


@pytest.mark.parametrize(
    "shape, expected",
    [((6,), (6, 1)), ((6, 2), (6, 2)), ((3, 4, 5), (3, 4, 5))],
    ids=["scalars", "channels", "images"],
)
@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", ">f4"])
def test_layouts_and_types(tmp_path, shape, expected, dtype):
    x = (some(40, *shape) * 50 + 60).astype(dtype)
    splits = read(save(tmp_path, x=x))
    assert splits.shape == expected and splits.num_classes == 4
    stored = torch.uint8 if dtype == "u1" else torch.float32
    assert splits.train.x.dtype == stored
    values = x.astype("f4").flatten()
    assert np.array_equal(np.sort(every(splits).float().flatten().numpy()), np.sort(values))


def test_bounds_come_from_all_the_data_or_are_stated(tmp_path):
    x = some()
    x[3, 0, 0], x[17, 1, 1] = -7.5, 11.25
    splits = read(save(tmp_path, x=x))
    assert splits.bounds == (-7.5, 11.25)
    assert splits.origin["remarks"] == ["Bounds were taken from the data: [-7.5, 11.25]."]
    stated = read(tmp_path, bounds=(-8, 12))
    assert stated.bounds == (-8.0, 12.0) and stated.origin["remarks"] == []
    with pytest.raises(ValueError, match=r"lie in the bounds \[-1.0, 2.0\]; got \[-7.5, 11.25\]"):
        read(tmp_path, bounds=(-1, 2))


def test_stated_bounds_survive_json_and_the_command_line():
    dataset = Arrays(path="mine.npz", bounds=(-1, 2))
    assert from_dict(Dataset, json.loads(json.dumps(to_dict(dataset)))) == dataset
    assert override(dataset, {"bounds": "[-1, 2.5]"}).bounds == (-1.0, 2.5)


def test_a_test_part_of_its_own_is_kept_as_it_is(tmp_path):
    parts = {"x_train": some(30), "y_train": labels(30), "x_test": some(7), "y_test": labels(7)}
    np.savez(tmp_path / "mine.npz", **parts)
    splits = read(tmp_path)
    assert np.array_equal(splits.test.x.numpy(), parts["x_test"])
    assert splits.test.y.tolist() == parts["y_test"].tolist()
    assert splits.origin["examples"] == {"train": 22, "validation": 8, "test": 7}
    assert splits.origin["arrays"]["x_test"] == [7, 6, 2]


def test_without_one_a_stratified_fraction_is_set_aside_that_no_seed_moves(tmp_path):
    save(tmp_path)
    splits = read(tmp_path, test_fraction=0.3)
    assert splits.test.y.bincount().tolist() == [3, 3, 3, 3]
    other = read(tmp_path, seed=5, test_fraction=0.3, validation=4)
    assert torch.equal(other.test.x, splits.test.x)
    assert not torch.equal(read(tmp_path, seed=5).validation.x, read(tmp_path).validation.x)


def test_a_pair_of_npy_files(tmp_path):
    expected = read(save(tmp_path))
    np.save(tmp_path / "x.npy", some())
    np.save(tmp_path / "y.npy", labels())
    splits = read(tmp_path, path="x.npy", labels="y.npy")
    assert torch.equal(splits.test.x, expected.test.x)
    assert list(splits.origin["files"]) == ["x.npy", "y.npy"]


def test_paths_may_be_absolute_and_need_no_directory(tmp_path):
    save(tmp_path)
    path = str(tmp_path / "mine.npz")
    assert torch.equal(read(None, path=path).test.x, read(tmp_path).test.x)


def test_a_missing_file_says_where_it_should_be(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`arrays` needs mine.npz; there is no file .*mine"
    ):
        read(tmp_path)


def test_a_pinned_file_that_has_changed_is_refused(tmp_path):
    digest = checksum_of(save(tmp_path) / "mine.npz")
    assert read(tmp_path, sha256=digest).origin["verified"] is True
    assert read(tmp_path, sha256=digest.removeprefix("sha256:").upper())
    assert read(tmp_path).origin["files"] == {"mine.npz": digest}
    save(tmp_path, x=some() / 2)
    with pytest.raises(CorruptFile, match=r"mine.npz must have the checksum .* has changed since"):
        read(tmp_path, sha256=digest)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path, value):
    x = some()
    x[17, 3, 1] = value
    message = rf"`x` and `y` in mine.npz must be finite in float32; got {value} in row 17 \(1 such"
    with pytest.raises(ValueError, match=message):
        read(save(tmp_path, x=x))


def test_a_number_beyond_float32_is_refused(tmp_path):
    x = some().astype("f8")
    x[2, 0, 0] = 1e300
    with pytest.raises(ValueError, match=r"must be finite in float32; got inf in row 2"):
        read(save(tmp_path, x=x))


X = some()
REFUSED = {
    "shape": ({"x": some(40, 2, 2, 2, 2)}, r"`x` in mine.npz must have shape \(n, length\)"),
    "scalars": ({"x": X[:, 0, 0]}, r"must have shape .*; got \(40,\)"),
    "no length": ({"x": X[:, :0]}, r"must have shape .*; got \(40, 0, 2\)"),
    "int64": ({"x": X.astype("i8")}, r"must be uint8, or floats; got int64. Convert it"),
    "complex": ({"x": X.astype("c8")}, r"must be uint8, or floats; got complex64"),
    "float labels": ({"y": labels() * 1.0}, r"`y` in mine.npz must be integers of shape \(n,\)"),
    "one-hot": ({"y": np.eye(4)[labels()].astype(int)}, r"int64 of shape \(40, 4\). One-hot"),
    "fewer labels": (
        {"y": labels(39)},
        r"`x` and `y` .* as many rows as each other; got 40 and 39",
    ),
    "negative": ({"y": labels() - 1}, r"must be integers from 0 to 2; got -1 in row 0"),
    "gap": ({"y": labels() + 1}, r"Labels in mine.npz must be 0, 1, .*; got 1, 2, 3, 4. Renumber"),
    "one class": ({"y": labels() * 0}, r"two classes or more.*; got 0"),
    "empty": ({"x": X[:0], "y": labels(0)}, r"must not be empty; got 0 examples"),
    "constant": ({"x": X * 0}, r"must differ from each other .*; got 0.0 everywhere. State"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(tmp_path, case):
    arrays, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read(save(tmp_path, **arrays))


SETTINGS = {
    "class": ({"num_classes": 3}, r"must be integers from 0 to 2; got 3 in row 3"),
    "validation": (
        {"validation": 32},
        r"`Arrays\(validation=...\)` must leave .* the 32 there are",
    ),
    "limit": ({"train_limit": 25}, r"must be at most the 24 examples left beside 8"),
    "no test": ({"test_fraction": 0.01}, r"leave examples on both sides of 40; got 0.01.*sets 0"),
    "all test": ({"test_fraction": 0.999}, r"both sides of 40; got 0.999, which sets 40 aside"),
    "bounds": ({"bounds": (1.0, 1.0)}, r"low < high; got \(1.0, 1.0\)"),
    "suffix": ({"path": "mine.csv"}, r"must end in .npz or .npy; got 'mine.csv'"),
    "labels": ({"labels": "y.npy"}, r"if, and only if, `path` is an .npy file"),
    "no labels": ({"path": "x.npy"}, r"if, and only if, `path` is an .npy file"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_met_are_refused(tmp_path, case):
    settings, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        read(save(tmp_path), **settings)


def test_more_classes_than_occur_may_be_stated(tmp_path):
    assert read(save(tmp_path, y=labels() + 1), num_classes=6).num_classes == 6


def test_uint8_has_no_other_bounds(tmp_path):
    save(tmp_path, x=(some() > 0).astype("u1"))
    assert read(tmp_path, bounds=(0, 1)).bounds == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"must be \(0, 1\) or left out for uint8 inputs"):
        read(tmp_path, bounds=(0, 255))


def test_parts_of_different_types_or_shapes_are_refused(tmp_path):
    parts = {"x_train": some(30), "y_train": labels(30), "y_test": labels(7)}
    np.savez(tmp_path / "mine.npz", x_test=some(7).astype("u1"), **parts)
    with pytest.raises(ValueError, match=r"stored in one type"):
        read(tmp_path, bounds=(-1, 2))
    np.savez(tmp_path / "mine.npz", x_test=some(7, 5, 2), **parts)
    with pytest.raises(ValueError, match=r"the test data .* shape \(6, 2\); got \(5, 2\)"):
        read(tmp_path)


def test_other_names_are_listed(tmp_path):
    np.savez(tmp_path / "mine.npz", inputs=some(), x=some())
    with pytest.raises(ValueError, match=r"hold arrays named x and y, .*; got inputs, x"):
        read(tmp_path)


def test_pickled_arrays_are_refused(tmp_path):
    pickled = np.array([{"a": 1}] * 40, dtype=object)
    with pytest.raises(CorruptFile, match=r"mine.npz must be .* not of pickles; Object arrays"):
        read(save(tmp_path, y=pickled))
    np.save(tmp_path / "x.npy", pickled, allow_pickle=True)
    np.save(tmp_path / "y.npy", labels())
    with pytest.raises(CorruptFile, match=r"x.npy must be .* not a pickle; Object arrays"):
        read(tmp_path, path="x.npy", labels="y.npy")


def flipped(data):
    return data[:300] + bytes([data[300] ^ 255]) + data[301:]


SPOILT = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"1,2,3\n",
    "pickle": lambda data: b"\x80\x04]\x94.",
    "flipped": flipped,
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_npz_file_is_named(tmp_path, case):
    path = save(tmp_path) / "mine.npz"
    path.write_bytes(SPOILT[case](path.read_bytes()))
    with pytest.raises(CorruptFile, match=r"mine.npz must be a whole .npz archive"):
        read(tmp_path)


@pytest.mark.parametrize("case", [case for case in SPOILT if case != "flipped"])
def test_a_spoilt_npy_file_is_named(tmp_path, case):
    np.save(tmp_path / "x.npy", some())
    np.save(tmp_path / "y.npy", labels())
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(SPOILT[case](data))
    with pytest.raises(CorruptFile, match=r"x.npy must be a whole .npy array"):
        read(tmp_path, path="x.npy", labels="y.npy")


def test_an_archive_called_npy_is_refused(tmp_path):
    (save(tmp_path) / "mine.npz").rename(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", labels())
    with pytest.raises(CorruptFile, match=r"x.npy must be .*; it is an .npz archive"):
        read(tmp_path, path="x.npy", labels="y.npy")
