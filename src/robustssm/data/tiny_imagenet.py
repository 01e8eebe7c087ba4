"""Tiny-ImageNet (le2015tiny) from its directory tree or from the .zip archive that it comes in."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.core.errors import CorruptFile, violation
from robustssm.core.rng import Noise
from robustssm.data import archive, images
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.splitting import split_off_validation
from robustssm.data.tree import Directory, Tree, ZipTree

ROOT = "tiny-imagenet-200"
ARCHIVE = f"{ROOT}.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
ARCHIVE_MD5 = "md5:90528d7ca1a48142e341f4ef8d21d0de"
ANNOTATIONS = "val/val_annotations.txt"
SIDE = 64


@register("tiny_imagenet")
@settings
class TinyImageNet(Dataset):
    """Colour photographs, (3, 64, 64): 500 a class to train on, 50 a class to test.

    All 200 classes, or the first `classes` lines of wnids.txt, numbered in that order. The test
    split is the published *validation* part, as the labels of the published test part are not
    public; our validation split is taken from the training part. Labels come from paths and from
    val_annotations.txt, and only images of the chosen classes are decoded; grey ones get three
    equal channels. All 200 classes take 1.4 GB of memory, 50 take 340 MB.

    Source: le2015tiny. The first 50 classes: qi2024exploring, released code.
    """

    classes: Annotated[int, Field(ge=2, le=200)] = 200
    validation: Annotated[int, Field(ge=1)] = 2000
    train_limit: Annotated[int, Field(ge=1)] | None = None
    download: bool = False

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`."""
        tree = self._open(data_dir)
        wnids = self._wnids(tree)
        files: dict[str, str] = {}
        training = _decoded(tree, "train", _training(tree, wnids), files)
        test = _decoded(tree, "val", _validation(tree, wnids), files)
        verified = False
        if isinstance(tree, ZipTree):
            files[ARCHIVE] = archive.checksum_of(tree.path, algorithm="md5")
            verified = files[ARCHIVE] == ARCHIVE_MD5
        remarks = ["The test split is the published validation part."]
        if len(wnids) < 200:
            remarks.append(f"The first {len(wnids)} of 200 classes.")
        if not verified:
            remarks.append("Checksums were not compared with the official archive.")
        return split_off_validation(
            "TinyImageNet",
            training,
            test,
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=len(wnids),
            bounds=(0.0, 1.0),
            origin={
                "source": "tiny_imagenet (JPEG files)",
                "licence": "ImageNet's terms: research and teaching, not commercial",
                "files": files,
                "verified": verified,
                "classes": wnids,
                "remarks": remarks,
            },
        )

    def _open(self, data_dir: Path | None) -> Tree:
        if data_dir is not None:
            if (data_dir / ROOT).is_dir():
                return Directory(data_dir / ROOT)
            if (data_dir / ARCHIVE).is_file():
                return ZipTree(data_dir / ARCHIVE, ROOT)
            if self.download:
                fetched = archive.fetch([URL], known_hash=ARCHIVE_MD5, folder=data_dir)
                return ZipTree(fetched, ROOT)
        raise archive.missing(
            "tiny_imagenet",
            f"the directory {ROOT} or {ARCHIVE}",
            folders=(".",),
            data_dir=data_dir,
            advice=f"The archive is at {URL}; it need not be unpacked.",
            downloadable=not self.download,
        )

    def _wnids(self, tree: Tree) -> list[str]:
        every = tree.read("wnids.txt").decode("ascii", "replace").split()
        if len(set(every)) < len(every):
            raise CorruptFile(
                f"{tree.describe('wnids.txt')} must name every class once; it has "
                f"{len(every)} lines and {len(set(every))} classes. Fetch it again."
            )
        if len(every) < self.classes:
            raise ValueError(
                violation(
                    "`TinyImageNet(classes=...)`",
                    f"be at most the {len(every)} lines of {tree.describe('wnids.txt')}",
                    self.classes,
                )
            )
        return every[: self.classes]


def _training(tree: Tree, wnids: Sequence[str]) -> list[tuple[str, int]]:
    """Paths and classes of the training images: by class, then by number."""
    folders = tree.folders()
    found: list[tuple[str, int]] = []
    for label, wnid in enumerate(wnids):
        folder = f"train/{wnid}/images"
        names = [name for name in folders.get(folder, []) if name.upper().endswith(".JPEG")]
        if not names:
            raise CorruptFile(
                f"{tree.describe(folder)} must hold the .JPEG images of class {label}, {wnid}; "
                "there are none. Unpack or fetch the archive again."
            )
        found += [(f"{folder}/{name}", label) for name in sorted(names, key=_by_number)]
    return found


def _validation(tree: Tree, wnids: Sequence[str]) -> list[tuple[str, int]]:
    """Paths and classes of the validation images, in the order of their annotations."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    found: list[tuple[str, int]] = []
    lines = tree.read(ANNOTATIONS).decode("ascii", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if len(fields) < 2:
            raise CorruptFile(
                f"{tree.describe(ANNOTATIONS)} must have an image and its class in every line; "
                f"line {number} is {line!r}. Fetch it again."
            )
        if fields[1] in labels:
            found.append((f"val/images/{fields[0]}", labels[fields[1]]))
    lacking = sorted(set(range(len(wnids))) - {label for _, label in found})
    if lacking:
        raise CorruptFile(
            f"{tree.describe(ANNOTATIONS)} must name images of every class; it has none of "
            f"{', '.join(wnids[label] for label in lacking[:5])}. Fetch it again."
        )
    return found


def _decoded(
    tree: Tree, part: str, listed: Sequence[tuple[str, int]], files: dict[str, str]
) -> Split:
    """Decodes images, and files one checksum of all their bytes."""
    pixels = np.empty((len(listed), 3, SIDE, SIDE), np.uint8)
    digest = hashlib.sha256()
    for row, (name, _) in enumerate(listed):
        data = tree.read(name)
        digest.update(data)
        image = images.decode(data, tree.describe(name))
        if image.shape[1:] != (SIDE, SIDE):
            height, width = image.shape[1:]
            raise CorruptFile(
                f"{tree.describe(name)} must be {SIDE} x {SIDE} pixels; it is {height} x {width}. "
                "Fetch it again; for images of your own use the data set `parquet` or `arrays`."
            )
        pixels[row] = image
    files[f"{part} ({len(listed)} images)"] = f"sha256:{digest.hexdigest()}"
    return Split(torch.from_numpy(pixels), torch.tensor([label for _, label in listed]))


def _by_number(name: str) -> tuple[int, str]:
    """Of n01443537_12.JPEG: 12, so that it stands behind 2."""
    match = re.search(r"_(\d+)\.", name)
    return (int(match[1]) if match else -1, name)
