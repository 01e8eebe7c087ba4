"""Miniature data files in the formats of the originals, so that tests and trials need no download.

    dataset = MINIATURES["mnist"](folder)
    splits = dataset.read(data_dir=folder, noise=Noise(0))

Images are drawn so that a small model can learn them: a bright square whose place tells the class,
under noise.
"""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from robustssm.core.rng import Noise
from robustssm.data.adding import Adding
from robustssm.data.arrays import Arrays
from robustssm.data.base import Dataset
from robustssm.data.cifar10 import CIFAR10
from robustssm.data.copying import Copying
from robustssm.data.digits import Digits
from robustssm.data.mnist import MNIST
from robustssm.data.parquet import Parquet
from robustssm.data.synthetic import Synthetic
from robustssm.data.tiny_imagenet import TinyImageNet
from robustssm.data.tones import Tones


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


def write_tiny_imagenet(
    folder: Path, *, classes: int = 4, train: int = 12, val: int = 3, packed: bool = False
) -> TinyImageNet:
    """Writes the published tree, as files or as one .zip, and returns settings that read it.

    The first training image of every class, and its first validation image, are grey.

    Args:
        folder: The data directory to be.
        classes: Number of classes, 2 to 10.
        train: Training images of each.
        val: Validation images of each.
        packed: Whether to write tiny-imagenet-200.zip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wnids = [
        f"n{9 - label:08d}" for label in range(classes)
    ]  # the order of wnids.txt is not theirs
    files = {"wnids.txt": "\n".join(wnids).encode()}
    files["words.txt"] = "".join(f"{wnid}\tthing\n" for wnid in sorted(wnids)).encode()
    annotations = []
    for label, wnid in enumerate(wnids):
        noise = Noise(0).fork("tiny_imagenet", label)
        drawn, _ = images(10 * (train + val), channels=3, side=64, noise=noise)
        own = drawn[label::10]
        for i, pixels in enumerate(own[:train]):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(pixels, grey=i == 0)
        boxes = "".join(f"{wnid}_{i}.JPEG\t0\t0\t63\t63\n" for i in range(train))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = boxes.encode()
        for i, pixels in enumerate(own[train:]):
            name = f"val_{i * classes + label}.JPEG"
            files[f"val/images/{name}"] = jpeg(pixels, grey=i == 0)
            annotations.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    if packed:
        with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as target:
            for name, data in files.items():
                target.writestr(f"tiny-imagenet-200/{name}", data)
    else:
        for name, data in files.items():
            path = folder / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return TinyImageNet(classes=classes, validation=max(1, classes * train // 4))


def write_parquet(folder: Path, *, rows: int = 20, shards: int = 2) -> Parquet:
    """Writes colour images as the library `datasets` does, and returns settings that read them.

    Args:
        folder: The data directory to be.
        rows: Images in each shard and in the test part.
        shards: Number of training shards.
    """
    import pyarrow as pa
    from pyarrow import parquet

    place = folder / "pictures" / "data"
    place.mkdir(parents=True)
    names = [f"train-{k:05d}-of-{shards:05d}" for k in range(shards)] + ["test-00000-of-00001"]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [f"place {k}" for k in range(10)]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for name in names:
        x, y = images(rows, channels=3, side=16, noise=Noise(0).fork("parquet", name))
        encoded = [{"bytes": png(pixels), "path": None} for pixels in x]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(encoded, kind), "label": pa.array(y.astype(np.int64))})
        parquet.write_table(table.replace_schema_metadata(metadata), place / f"{name}.parquet")
    return Parquet(path="pictures", validation=max(1, rows * shards // 4))


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


def png(pixels: np.ndarray) -> bytes:
    """An image (channels, height, width) of one or three channels, encoded without loss."""
    return _encoded(pixels, "PNG")


def jpeg(pixels: np.ndarray, *, grey: bool = False) -> bytes:
    """An image (3, height, width), or its first channel, encoded with some loss."""
    return _encoded(pixels[:1] if grey else pixels, "JPEG")


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    target = io.BytesIO()
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(shown)).save(target, kind)
    return target.getvalue()


def _drawn(kind: type[Synthetic]) -> Callable[[Path], Dataset]:
    return lambda folder: kind(train=40, validation=10, test=20)


def _digits(folder: Path) -> Digits:
    del folder
    return Digits()


MINIATURES: Mapping[str, Callable[[Path], Dataset]] = {
    "digits": _digits,
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "arrays": write_arrays,
    "tiny_imagenet": write_tiny_imagenet,
    "parquet": write_parquet,
    "copying": _drawn(Copying),
    "adding": _drawn(Adding),
    "tones": _drawn(Tones),
}
"""Registered name to: writes the files of a miniature into a folder, returns settings for them."""
