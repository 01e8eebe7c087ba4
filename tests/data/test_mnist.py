"""MNIST: the IDX format byte by byte, pooling against exact fractions, and the real files."""

import gzip
from fractions import Fraction

import numpy as np
import pytest
import torch

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data import mnist
from robustssm.data.archive import checksum
from robustssm.data.mnist import MNIST, average, parse_idx
from robustssm.testing.miniatures import idx, write_mnist

NAMES = tuple(mnist.OFFICIAL)


def read(dataset, folder, seed=0):
    return dataset.read(data_dir=folder, noise=Noise(seed))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "torchvision"])
def test_all_layouts_give_the_same_splits(tmp_path, packed, flat):
    expected = read(write_mnist(tmp_path / "expected"), tmp_path / "expected")
    dataset = write_mnist(tmp_path / "x", packed=packed)
    folder = tmp_path / "x" / "MNIST" / "raw" if flat else tmp_path / "x"
    splits = read(dataset, folder)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, name).x, getattr(expected, name).x)
        assert torch.equal(getattr(splits, name).y, getattr(expected, name).y)
    assert sorted(splits.origin["files"].values()) == sorted(expected.origin["files"].values())


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    splits = read(write_mnist(tmp_path), tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    data = gzip.decompress((raw / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((raw / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert splits.test.x.dtype == torch.uint8 and splits.shape == (1, 28, 28)
    assert splits.test.x.numpy().tobytes() == data[16:]
    assert splits.test.y.tolist() == list(labels[8:])


@pytest.mark.parametrize("pool", [2, 4, 7, 14])
def test_pooled_values_are_the_nearest_floats_of_the_averages(pool):
    x = Noise(0).integers(3, 2, 28, 28, high=256).byte()
    got = average(x, pool)
    n = 28 // pool
    assert got.shape == (3, 2, n, n) and got.dtype == torch.float32
    sums = x.long().reshape(3, 2, n, pool, n, pool).sum((3, 5)).flatten().tolist()
    exact = [float(Fraction(total, 255 * pool**2)) for total in sums]
    assert torch.equal(got.flatten(), torch.tensor(exact, dtype=torch.float64).float())
    assert average(torch.full((1, 1, 28, 28), 255).byte(), pool).max() == 1.0


def test_pooled_digits_are_floats_and_said_to_be_so(tmp_path):
    dataset = write_mnist(tmp_path)
    splits = read(MNIST(pool=2, validation=10, verify=False), tmp_path)
    assert splits.shape == (1, 14, 14) and splits.bounds == (0.0, 1.0)
    assert torch.equal(splits.test.x, average(read(dataset, tmp_path).test.x, 2))
    assert "Images are averaged over 2 x 2 pixels." in splits.origin["remarks"]


def test_a_pool_that_does_not_divide_28_is_refused():
    with pytest.raises(ValueError, match=r"`MNIST\(pool=...\)` must be 1, 2, 4, 7 or 14; got 3"):
        MNIST(pool=3)


def test_files_that_are_not_the_official_ones_are_refused_unless_accepted(tmp_path):
    write_mnist(tmp_path)
    message = "train-images-idx3-ubyte.gz must have the checksum sha256:ba89.*verify=false"
    with pytest.raises(CorruptFile, match=message):
        read(MNIST(validation=10), tmp_path)
    origin = read(MNIST(validation=10, verify=False), tmp_path).origin
    assert origin["verified"] is False
    assert "Checksums were not compared with the official files." in origin["remarks"]


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    dataset = write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    message = r"`mnist` needs t10k-labels-idx1-ubyte\[.gz\]; looked in .*dataset.download=true"
    with pytest.raises(FileNotFoundError, match=message):
        read(dataset, tmp_path)
    with pytest.raises(FileNotFoundError, match="no data directory was given"):
        read(dataset, None)


SPOILT = {
    "cut off": (lambda d: d[:-1], r"must be \d+ bytes .* it is cut off: \d+ bytes"),
    "too long": (lambda d: d + b"x", "it is too long"),
    "cut in the header": (lambda d: d[:6], "it is cut off: 6 bytes"),
    "empty": (lambda d: b"", "must start with 00 00 08 03 .* it starts with nothing"),
    "wrong magic": (lambda d: b"\x00\x00\x0d\x03" + d[4:], "it starts with 00 00 0d 03"),
    "labels": (lambda d: idx(np.zeros(4)), "must start with 00 00 08 03 .* 00 00 08 01"),
    "wrong size": (lambda d: idx(np.zeros((60, 20, 28))), "must hold 28 x 28 images; .* 20 x 28"),
    "fewer": (lambda d: idx(np.zeros((59, 28, 28))), "they hold 59 images and 60 labels"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_named_with_what_is_wrong(tmp_path, case):
    spoil, message = SPOILT[case]
    dataset = write_mnist(tmp_path, packed=False)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CorruptFile, match=f"train-images-idx3-ubyte.*{message}"):
        read(dataset, tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    dataset = write_mnist(tmp_path, packed=False)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.arange(60) % 12))
    with pytest.raises(ValueError, match=r"Labels in the training data of `MNIST`.* got 10 in row"):
        read(dataset, tmp_path)


def test_validation_larger_than_training_is_refused(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="less than the 60 there are; got 2000"):
        read(MNIST(verify=False), tmp_path)


def test_an_array_of_any_shape_survives_idx(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    parsed = parse_idx(tmp_path, idx(array), axes=3)
    assert np.array_equal(parsed, array) and parsed.flags.writeable


def test_missing_files_are_fetched_on_request_and_only_then(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mirror")
    served = {p.name: p.read_bytes() for p in (tmp_path / "mirror/MNIST/raw").iterdir()}
    asked = []

    def retrieve(url, *, known_hash, fname, path):
        asked.append((url, known_hash))
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(served[fname])
        return str(path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    official = {
        name: mnist._Checksums(
            f"sha256:served {name}", checksum(gzip.decompress(served[f"{name}.gz"]))
        )
        for name in NAMES
    }
    monkeypatch.setattr(mnist, "OFFICIAL", official)
    here = tmp_path / "here"
    with pytest.raises(FileNotFoundError):
        read(MNIST(validation=10), here)
    assert not asked
    splits = read(MNIST(validation=10, download=True), here)
    assert splits.origin["verified"] is True and len(splits.test) == 20
    assert sorted(asked) == sorted(
        (f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", f"sha256:served {name}")
        for name in NAMES
    )
    read(MNIST(validation=10, download=True), here)
    assert len(asked) == 4, "what is here is not fetched again"


def test_a_download_needs_a_directory(monkeypatch):
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("nowhere to put it"))
    with pytest.raises(FileNotFoundError, match="no data directory was given"):
        read(MNIST(download=True), None)


def test_a_download_is_always_verified():
    with pytest.raises(ValueError, match=r"must have verify=True.*got verify=False"):
        MNIST(download=True, verify=False)


def test_the_real_files_are_the_official_ones(real_data):
    if not (real_data / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST here")
    splits = read(MNIST(pool=2), real_data)
    assert splits.origin["verified"] is True
    assert splits.origin["examples"] == {"train": 58000, "validation": 2000, "test": 10000}
    # Known counts of the test set, and the mean grey value that everybody normalises with.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits.test.y.bincount().tolist() == counts
    x = torch.cat([splits.train.x, splits.validation.x])
    assert abs(float(x.mean(dtype=torch.float64)) - 0.1307) < 5e-5
