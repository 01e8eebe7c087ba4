"""Miniature data files in the formats of the originals, so that tests and trials need no download.

    dataset = MINIATURES["mnist"](folder)
    splits = dataset.read(data_dir=folder, noise=Noise(0))

Images are drawn so that a small model can learn them: a bright square whose place tells the class,
under noise.
"""

import gzip
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from robustssm.core.rng import Noise
from robustssm.data.arrays import Arrays
from robustssm.data.base import Dataset
from robustssm.data.cifar10 import CIFAR10
from robustssm.data.digits import Digits
from robustssm.data.mnist import MNIST


def write_mnist(folder: Path, *, train: int = 60, test: int = 20, packed: bool = True) -> MNIST:
    """Writes four IDX files in torchvision's layout and returns settings that read them.

    Args:
        folder: The data directory to be.
        train: Number of training images.
        test: Number of test images.
        packed: Whether to write .gz files.
    """
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        x, y = images(count, channels=1, side=28, noise=Noise(0).fork("mnist", part))
        for name, array in (
            (f"{part}-images-idx3-ubyte", x[:, 0]),
            (f"{part}-labels-idx1-ubyte", y),
        ):
            data = idx(array)
            path = raw / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return MNIST(validation=max(1, train // 6), verify=False)


def write_cifar10(
    folder: Path, *, batches: int = 2, records: int = 20, python: bool = False
) -> CIFAR10:
    """Writes training batches and a test batch and returns settings that read them.

    Args:
        folder: The data directory to be.
        batches: Number of training batches, 1 to 5.
        records: Images in each file.
        python: Whether to write the pickled version instead of the binary one.
    """
    place = folder / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    place.mkdir(parents=True)
    for stem in [*(f"data_batch_{k}" for k in range(1, batches + 1)), "test_batch"]:
        x, y = images(records, channels=3, side=32, noise=Noise(0).fork("cifar10", stem))
        rows = x.reshape(records, -1)
        if python:
            content = {b"batch_label": stem.encode(), b"labels": y.tolist(), b"data": rows}
            (place / stem).write_bytes(pickle.dumps(content, protocol=2))
        else:
            (place / f"{stem}.bin").write_bytes(np.hstack([y[:, None], rows]).tobytes())
    return CIFAR10(batches=batches, validation=max(1, records // 4), verify=False)


def write_arrays(folder: Path, *, rows: int = 80, length: int = 12) -> Arrays:
    """Writes sequences.npz, of float sequences with two channels and three classes.

    Args:
        folder: The data directory to be.
        rows: Number of sequences.
        length: Their length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    y = np.arange(rows) % 3
    x = Noise(0).fork("arrays").normal(rows, length, 2).numpy() + y[:, None, None]
    np.savez(folder / "sequences.npz", x=x.astype(np.float32), y=y)
    return Arrays(path="sequences.npz", validation=max(1, rows // 8))


def images(count: int, *, channels: int, side: int, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of ten classes, in turn.

    Args:
        count: Number of images.
        channels: Channels of each.
        side: Height and width, at least 10.
        noise: Source of the background.

    Returns:
        Pixels (count, channels, side, side) and labels (count,), both uint8.
    """
    labels = np.arange(count) % 10
    pixels = noise.integers(count, channels, side, side, high=64).numpy().astype(np.uint8)
    cell = side // 5
    for image, label in zip(pixels, labels, strict=True):
        top, left = (label // 5) * 2 * cell, (label % 5) * cell
        image[:, top : top + cell, left : left + cell] = 255
    return pixels, labels.astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes as the content of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def _digits(folder: Path) -> Digits:
    del folder
    return Digits()


MINIATURES: Mapping[str, Callable[[Path], Dataset]] = {
    "digits": _digits,
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "arrays": write_arrays,
}
"""Registered name to: writes the files of a miniature into a folder, returns settings for them."""
