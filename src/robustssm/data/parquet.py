"""Data sets as Parquet shards, laid out as those of the Hugging Face Hub (lhoest2021datasets)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from robustssm.core.config import register, settings
from robustssm.core.errors import unknown, violation
from robustssm.core.rng import Noise
from robustssm.data import archive
from robustssm.data.arrays import as_classes, as_inputs, count_classes
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.columns import Table, read_shards, to_images, to_numbers
from robustssm.data.shards import find_shards
from robustssm.data.splitting import split_off_validation

INPUTS = ("image", "img", "pixel_values", "x", "inputs", "values", "sequence", "audio")
LABELS = ("label", "labels", "fine_label", "y", "target", "class")


@register("parquet")
@settings
class Parquet(Dataset):
    """Encoded images, or arrays of numbers, with integer labels, in a directory of .parquet files.

    The directory `path`, or its folder data/, holds train-*.parquet and test-*.parquet, or
    validation-*.parquet where there is no test part (train.parquet and train/*.parquet are read as
    well). Shards are read in the order of their names; where these count (-00000-of-00003), none
    may be missing. Validation examples are always split off from the training part. A relative
    `path` starts at the data directory if one is given.

    Inputs are a column of encoded images, {bytes, path} or bytes, all of one size, which become one
    channel if all are grey, else three; or of nested lists of equal lengths: (length,), (length,
    channels) or (channels, height, width), uint8 or floats, whose `bounds` are taken from all the
    data if not stated. Column names and class names come from the metadata that the library
    `datasets` writes, if it is there. Needs pyarrow: the extra `parquet`.

    Source: none; the data are the user's.
    """

    path: str
    inputs: str | None = None
    """Column of the inputs; None: the only one whose name or metadata says so."""
    labels: str | None = None
    """Column of the labels; None: likewise."""
    test_part: Literal["test", "validation"] | None = None
    """Which files are the test split; None: "test" if there are any. (The labels of a public test
    part may be withheld.)"""
    bounds: tuple[float, float] | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    validation: Annotated[int, Field(ge=1)] = 1000
    train_limit: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(
                violation("`Parquet(bounds=...)`", "be low, high with low < high", self.bounds)
            )

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`."""
        folder = Path(self.path) if data_dir is None else data_dir / self.path
        shards = find_shards(folder, test_part=self.test_part)
        first = read_shards(shards.train[:1], None)
        inputs, labels = self._columns(first)
        training = self._split(shards.train, inputs, labels)
        test = self._split(shards.test, inputs, labels)
        if training.x.shape[1:] != test.x.shape[1:] and training.x.ndim == test.x.ndim == 4:
            training, test = _as_colours(training), _as_colours(test)
        classes = first.classes(labels)
        bounds = self._bounds(training, test)
        remarks = [f"The test split is the {shards.test_part} part."]
        if self.bounds is None and training.x.dtype != torch.uint8:
            remarks.append(f"Bounds were taken from the data: [{bounds[0]:g}, {bounds[1]:g}].")
        return split_off_validation(
            "Parquet",
            training,
            test,
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=self.num_classes
            or (len(classes) if classes else count_classes(training, test, str(folder))),
            bounds=bounds,
            origin={
                "source": f"parquet ({folder.name})",
                "licence": "the user's",
                "files": {
                    file.relative_to(folder).as_posix(): archive.checksum_of(file)
                    for file in (*shards.train, *shards.test)
                },
                "verified": False,
                "columns": {"inputs": inputs, "labels": labels},
                **({"classes": classes} if classes else {}),
                "remarks": remarks,
            },
        )

    def _columns(self, table: Table) -> tuple[str, str]:
        inputs = self.inputs or _only(table, "inputs", "Image", INPUTS)
        labels = self.labels or _only(table, "labels", "ClassLabel", LABELS)
        for column in (inputs, labels):
            if column not in table.names:
                raise ValueError(unknown(f"column of {table.file}", column, table.names))
        return inputs, labels

    def _split(self, files: tuple[Path, ...], inputs: str, labels: str) -> Split:
        table = read_shards(files, (inputs, labels))
        what = f"column `{inputs}` of {files[0]}" + (" and others" if len(files) > 1 else "")
        column = table.column(inputs)
        if table.encoded(inputs):
            x = torch.from_numpy(to_images(column, what))
        else:
            x = as_inputs(to_numbers(column, what), what)
        what = what.replace(f"`{inputs}`", f"`{labels}`")
        return Split(x, as_classes(_labels(to_numbers(table.column(labels), what)), what))

    def _bounds(self, training: Split, test: Split) -> tuple[float, float]:
        if training.x.dtype == torch.uint8:
            if self.bounds not in (None, (0.0, 1.0)):
                raise ValueError(
                    violation(
                        "`Parquet(bounds=...)`",
                        "be (0, 1) or left out for bytes, as these are divided by 255",
                        self.bounds,
                        "Store floats for another range.",
                    )
                )
            return (0.0, 1.0)
        if self.bounds is not None:
            return self.bounds
        parts = [torch.aminmax(split.x) for split in (training, test)]
        low, high = (min(float(p.min) for p in parts), max(float(p.max) for p in parts))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                violation(
                    f"Inputs in {self.path}",
                    "be finite, and differ from each other, if `bounds` are to be taken from them",
                    f"a range from {low} to {high}",
                    "Repair the data, or state the bounds: `--set dataset.bounds=[0,1]`.",
                )
            )
        return (low, high)


def _only(table: Table, setting: str, feature: str, usual: tuple[str, ...]) -> str:
    """The column that metadata calls by that feature, or else that has a usual name."""
    stated = [name for name, found in table.features().items() if _type(found) == feature]
    named = [name for name in usual if name in table.names]
    found = stated if len(stated) == 1 else named[:1]
    if not found:
        raise ValueError(
            violation(
                f"{table.file}",
                f"have a column of {setting} by a usual name ({', '.join(usual)})",
                f"columns {', '.join(table.names)}",
                f"Name it: `--set dataset.{setting}=...`.",
            )
        )
    return found[0]


def _type(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _labels(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _as_colours(split: Split) -> Split:
    """Three equal channels for a part whose images are all grey, beside one that has colours."""
    if split.x.dtype == torch.uint8 and split.x.shape[1] == 1:
        return Split(split.x.expand(-1, 3, -1, -1).contiguous(), split.y)
    return split
