"""CIFAR-10: both published versions, their damage, and batches that are not there."""

import os
import pickle

import numpy as np
import pytest
import torch

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data import cifar10
from robustssm.data.cifar10 import CIFAR10
from robustssm.testing.miniatures import write_cifar10

BIN = "cifar-10-batches-bin"
PY = "cifar-10-batches-py"


def read(dataset, folder, seed=0):
    return dataset.read(data_dir=folder, noise=Noise(seed))


def test_both_versions_give_the_same_splits(tmp_path):
    binary = read(write_cifar10(tmp_path / "b"), tmp_path / "b")
    python = read(write_cifar10(tmp_path / "p", python=True), tmp_path / "p")
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(binary, name).x, getattr(python, name).x)
        assert torch.equal(getattr(binary, name).y, getattr(python, name).y)
    assert binary.train.x.dtype == torch.uint8 and binary.shape == (3, 32, 32)
    assert binary.origin["source"] == "cifar10 (binary version)"
    assert python.origin["source"] == "cifar10 (Python version)"
    assert list(python.origin["files"]) == [
        f"{PY}/{name}" for name in ("data_batch_1", "data_batch_2", "test_batch")
    ]


def test_a_record_is_a_label_and_three_planes(tmp_path):
    write_cifar10(tmp_path)
    record = bytes([7, *[10] * 1024, *[20] * 1024, *[30] * 1023, 31])
    (tmp_path / BIN / "test_batch.bin").write_bytes(record)
    splits = read(CIFAR10(batches=2, validation=5, verify=False), tmp_path)
    assert splits.test.y.tolist() == [7]
    assert [plane.unique().tolist() for plane in splits.test.x[0]] == [[10], [20], [30, 31]]
    assert splits.test.x[0, 2, 31, 31] == 31


def test_files_may_lie_in_the_directory_itself(tmp_path):
    dataset = write_cifar10(tmp_path)
    assert torch.equal(read(dataset, tmp_path / BIN).test.x, read(dataset, tmp_path).test.x)


def test_fewer_batches_are_a_setting_and_are_said(tmp_path):
    write_cifar10(tmp_path, batches=3)
    splits = read(CIFAR10(batches=2, validation=5, verify=False), tmp_path)
    assert splits.origin["batches"] == 2
    assert "Training data are 2 of the 5 batches." in splits.origin["remarks"]
    assert splits.origin["examples"] == {"train": 35, "validation": 5, "test": 20}
    assert f"{BIN}/data_batch_3.bin" not in splits.origin["files"]
    write_cifar10(tmp_path / "all", batches=5)
    whole = read(CIFAR10(validation=5, verify=False), tmp_path / "all")
    assert whole.origin["remarks"] == ["Checksums were not compared with the official files."]


def test_a_missing_batch_is_named_and_the_setting_mentioned(tmp_path):
    write_cifar10(tmp_path, batches=2)
    message = (
        r"`cifar10` needs data_batch_3.bin, data_batch_4.bin, data_batch_5.bin; looked in .*"
        r"Put the files into .*--set dataset.batches=...`"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read(CIFAR10(verify=False), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"needs .*test_batch.bin; no data directory"):
        read(CIFAR10(), None)


def test_the_version_that_is_nearly_complete_is_the_one_asked_about(tmp_path):
    write_cifar10(tmp_path, batches=4, python=True)
    with pytest.raises(FileNotFoundError, match=r"needs data_batch_5; .*cifar-10-batches-py"):
        read(CIFAR10(verify=False), tmp_path)


def test_copies_in_another_order_are_refused_unless_accepted(tmp_path):
    dataset = write_cifar10(tmp_path)
    message = "data_batch_1.bin must have the checksum md5:5dd7e06a.*dataset.verify=false"
    with pytest.raises(CorruptFile, match=message):
        read(CIFAR10(batches=2, validation=5), tmp_path)
    origin = read(dataset, tmp_path).origin
    assert origin["verified"] is False
    assert "Checksums were not compared with the official files." in origin["remarks"]


SPOILT = {
    "cut off": (lambda d: d[:-1], "whole number of records of 3073 bytes .* 3072 too many"),
    "empty": (lambda d: b"", "it is cut off or something else: 0 bytes"),
    "label": (lambda d: b"\x0a" + d[1:], "must have labels from 0 to 9; got 10 in record 0"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_binary_file_is_named(tmp_path, case):
    spoil, message = SPOILT[case]
    dataset = write_cifar10(tmp_path)
    path = tmp_path / BIN / "data_batch_2.bin"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CorruptFile, match=f"data_batch_2.bin.*{message}"):
        read(dataset, tmp_path)


PIXELS = np.zeros((2, 3072), np.uint8)
WRONG = {
    "no dict": ([1, 2], "must be a pickled dict; it is a list"),
    "no labels": ({"data": PIXELS}, "it has data in other forms"),
    "labels of CIFAR-100": ({"data": PIXELS, "fine_labels": [1, 2]}, "data, fine_labels"),
    "nothing": ({}, "it has nothing"),
    "floats": ({"data": PIXELS.astype(float), "labels": [1, 2]}, "must hold `data`"),
    "another shape": ({"data": PIXELS[:, :5], "labels": [1, 2]}, "must hold `data`"),
    "one label less": ({"data": PIXELS, "labels": [1]}, "must hold `data`"),
    "text labels": ({"data": PIXELS, "labels": ["1", "2"]}, "must hold `data`"),
    "no images": ({"data": PIXELS[:0], "labels": []}, "must hold `data`"),
    "label range": ({"data": PIXELS, "labels": [9, -1]}, "got -1 in record 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_pickle_of_something_else_is_named(tmp_path, case):
    content, message = WRONG[case]
    dataset = write_cifar10(tmp_path, python=True)
    (tmp_path / PY / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(CorruptFile, match=f"test_batch .*{message}"):
        read(dataset, tmp_path)


def test_a_malicious_batch_is_refused_and_nothing_is_run(tmp_path):
    witness = tmp_path / "witness"

    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    dataset = write_cifar10(tmp_path, python=True)
    content = {b"data": PIXELS, b"labels": [1, 2], b"filenames": Malice()}
    (tmp_path / PY / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CorruptFile, match=r"data_batch_1 .*system, which was refused"):
        read(dataset, tmp_path)
    assert not witness.exists()


def test_validation_larger_than_training_is_refused(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match="less than the 40 there are; got 2000"):
        read(CIFAR10(batches=2, verify=False), tmp_path)


@pytest.mark.parametrize("batches", [0, 6])
def test_there_are_five_batches(batches):
    with pytest.raises(ValueError, match=r"`CIFAR10\(batches=...\)` must be"):
        CIFAR10(batches=batches)


def test_the_archive_is_fetched_on_request_and_unpacked_beside_what_is_here(tmp_path, monkeypatch):
    import tarfile

    write_cifar10(tmp_path / "mirror", batches=5)
    asked = []

    def retrieve(url, *, known_hash, fname, path):
        asked.append((url, known_hash))
        with tarfile.open(path / fname, "w:gz") as tar:
            tar.add(tmp_path / "mirror" / BIN, arcname=BIN)
        return str(path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    here = tmp_path / "here"
    write_cifar10(here, batches=1, records=10)
    kept = (here / BIN / "data_batch_1.bin").read_bytes()
    with pytest.raises(CorruptFile, match=r"data_batch_1.bin must have the checksum md5:5dd7e"):
        read(CIFAR10(validation=5, download=True), here)
    assert asked == [
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", cifar10.ARCHIVE_SHA256)
    ]
    assert (here / BIN / "data_batch_1.bin").read_bytes() == kept, "nothing is overwritten"
    for k in range(2, 6):
        name = f"data_batch_{k}.bin"
        assert (here / BIN / name).read_bytes() == (tmp_path / "mirror" / BIN / name).read_bytes()


def test_a_download_is_always_verified():
    with pytest.raises(ValueError, match=r"must have verify=True.*got verify=False"):
        CIFAR10(download=True, verify=False)


def test_real_images_have_the_known_statistics(real_data):
    folder = real_data / BIN
    if not (folder / "data_batch_1.bin").is_file() or not (folder / "test_batch.bin").is_file():
        pytest.skip("no CIFAR-10 here")
    splits = read(CIFAR10(batches=1, verify=False), real_data)
    assert splits.origin["examples"] == {"train": 8000, "validation": 2000, "test": 10000}
    assert splits.test.y.bincount().tolist() == [1000] * 10
    # The channels' means over the test set, which do not depend on the order of its images.
    means = splits.test.x.to(torch.float64).mean((0, 2, 3)) / 255
    expected = torch.tensor([0.4942, 0.4851, 0.4504], dtype=torch.float64)
    torch.testing.assert_close(means, expected, rtol=0, atol=5e-5)
