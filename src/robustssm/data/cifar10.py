"""CIFAR-10 (krizhevsky2009learning), from its binary or its Python version."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.core.errors import CorruptFile, violation
from robustssm.core.rng import Noise
from robustssm.data import archive
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.pickles import read_pickle
from robustssm.data.splitting import split_off_validation

Part = tuple[np.ndarray, np.ndarray]
"""Pixels (n, 3072) uint8, in the order R, G, B plane, and labels (n,)."""

PIXELS = 3 * 32 * 32
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
MIRRORS = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")


@register("cifar10")
@settings
class CIFAR10(Dataset):
    """50,000 colour images of ten classes to train on and 10,000 to test, uint8 (3, 32, 32).

    The training images come in five files; with `batches` below 5 only the first so many are read,
    which the record of a run says. Both published versions are read: records of bytes
    (cifar-10-batches-bin) and pickles (cifar-10-batches-py), whose instructions are not run; the
    first one that has all the files asked for is taken. `verify` compares each file with the
    official MD5; turn it off for copies in another order.

    Source: krizhevsky2009learning, chapter 3.
    """

    batches: Annotated[int, Field(ge=1, le=5)] = 5
    validation: Annotated[int, Field(ge=1)] = 2000
    train_limit: Annotated[int, Field(ge=1)] | None = None
    verify: bool = True
    download: bool = False

    def __post_init__(self) -> None:
        if self.download and not self.verify:
            raise ValueError(
                violation(
                    "`CIFAR10(download=True)`",
                    "have verify=True, as it fetches the official files",
                    "verify=False",
                    "For other files, put them into the data directory and leave download=False.",
                )
            )

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`."""
        version, folder = self._locate(data_dir)
        assert data_dir is not None, "without a directory nothing is located"
        files: dict[str, str] = {}
        parts = [self._read_file(version, folder / name, files) for name in self._names(version)]
        prefix = folder.relative_to(data_dir)
        return split_off_validation(
            "CIFAR10",
            _join(parts[:-1]),
            _join(parts[-1:]),
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=10,
            bounds=(0.0, 1.0),
            origin={
                "source": f"cifar10 ({version.title})",
                "licence": "none stated by its authors; cite krizhevsky2009learning",
                "files": {(prefix / name).as_posix(): digest for name, digest in files.items()},
                "verified": self.verify,
                "batches": self.batches,
                "remarks": self._remarks(),
            },
        )

    def _remarks(self) -> list[str]:
        remarks = []
        if self.batches < 5:
            remarks.append(f"Training data are {self.batches} of the 5 batches.")
        if not self.verify:
            remarks.append("Checksums were not compared with the official files.")
        return remarks

    def _names(self, version: "_Version") -> list[str]:
        stems = [f"data_batch_{k}" for k in range(1, self.batches + 1)] + ["test_batch"]
        return [stem + version.suffix for stem in stems]

    def _locate(self, data_dir: Path | None) -> tuple["_Version", Path]:
        """The version and the folder that have every file asked for."""
        candidates = [
            (version, data_dir / folder)
            for version in VERSIONS
            for folder in version.folders
            if data_dir is not None
        ]
        lacking = [
            [name for name in self._names(version) if not (folder / name).is_file()]
            for version, folder in candidates
        ]
        for candidate, names in zip(candidates, lacking, strict=True):
            if not names:
                return candidate
        if self.download and data_dir is not None:
            return self._fetch(data_dir)
        nearest = min(lacking, key=len, default=self._names(VERSIONS[0]))
        version = VERSIONS[0]
        if candidates:
            version, _ = candidates[lacking.index(nearest)]
        raise archive.missing(
            "cifar10",
            ", ".join(nearest),
            folders=version.folders,
            data_dir=data_dir,
            advice="Fewer than five training batches are a setting of their own: "
            "`--set dataset.batches=...`.",
            downloadable=not self.download,
        )

    def _fetch(self, data_dir: Path) -> tuple["_Version", Path]:
        packed = archive.fetch(
            [f"{mirror}/{ARCHIVE}" for mirror in MIRRORS],
            known_hash=ARCHIVE_SHA256,
            folder=data_dir,
        )
        version = VERSIONS[0]
        folder = version.folders[0]
        members = [f"{folder}/{name}" for name in self._names(version)]
        archive.extract(packed, members, folder=data_dir)
        return version, data_dir / folder

    def _read_file(self, version: "_Version", path: Path, files: dict[str, str]) -> Part:
        data = path.read_bytes()
        part = version.parse(path, data)
        files[path.name] = archive.checksum(data, algorithm="md5")
        if self.verify:
            archive.verify(
                path,
                files[path.name],
                f"md5:{version.md5[path.name]}",
                advice="Fetch it again, or accept it with `--set dataset.verify=false`.",
            )
        return part


def parse_records(path: Path, data: bytes) -> Part:
    """Reads a file of the binary version: records of one label byte and 3072 pixel bytes.

    Raises:
        CorruptFile: If it is empty, no whole number of records, or has labels above 9.
    """
    record = 1 + PIXELS
    if not data or len(data) % record:
        raise CorruptFile(
            f"{path} must be a whole number of records of {record} bytes (official: 10000); it is "
            f"cut off or something else: {len(data)} bytes, {len(data) % record} too many. "
            "Fetch it again."
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, 1:], _labels(path, rows[:, 0])


def parse_pickle(path: Path, data: bytes) -> Part:
    """Reads a file of the Python version: a pickled dict with `data` and `labels`.

    Raises:
        CorruptFile: If it is damaged, asks for code to be run, or holds something else.
    """
    content = read_pickle(path, data)
    if not isinstance(content, dict):
        raise CorruptFile(f"{path} must be a pickled dict; it is a {type(content).__name__}.")
    content = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    pixels, labels = content.get("data"), content.get("labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (PIXELS,)
        or not isinstance(labels, list)
        or not all(isinstance(label, int) for label in labels)
        or not 0 < len(pixels) == len(labels)
    ):
        raise CorruptFile(
            f"{path} must hold `data`, bytes of shape (n, {PIXELS}), and `labels`, a list of n "
            f"integers; it has {', '.join(map(str, content)) or 'nothing'} in other forms. "
            "Fetch the official file."
        )
    return pixels, _labels(path, np.array(labels))


def _labels(path: Path, labels: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        raise CorruptFile(
            f"{path} must have labels from 0 to 9; got {labels[wrong[0]]} in record {wrong[0]}. "
            "Is it CIFAR-100, or damaged?"
        )
    return labels


def _join(parts: Sequence[Part]) -> Split:
    x = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    y = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return Split(torch.from_numpy(x), torch.from_numpy(y))


@dataclass(frozen=True)
class _Version:
    title: str
    folders: tuple[str, ...]
    suffix: str
    parse: Callable[[Path, bytes], Part]
    md5: dict[str, str]
    """As published; SHA-256 has not been published for each file of both versions."""


VERSIONS = (
    _Version(
        title="binary version",
        folders=("cifar-10-batches-bin", "CIFAR10/cifar-10-batches-bin", "."),
        suffix=".bin",
        parse=parse_records,
        md5={
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
    ),
    _Version(
        title="Python version",
        folders=("cifar-10-batches-py", "CIFAR10/cifar-10-batches-py", "."),
        suffix="",
        parse=parse_pickle,
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
)
