"""What every data set is: named splits of arrays, with their origin."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from robustssm.core.config import Named
from robustssm.core.errors import violation
from robustssm.core.rng import Noise

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Examples in memory: inputs as stored (uint8, or floats in the set's bounds) and classes."""

    x: UInt8[Tensor, "n ..."] | Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Int[Tensor, " rows"] | slice) -> "Split":
        """Some of the examples, in the order of `rows`."""
        return Split(self.x[rows], self.y[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on a device; batches are then gathered there, without copies."""
        return Split(self.x.to(device), self.y.to(device))

    def check(
        self,
        what: str,
        *,
        num_classes: int,
        shape: tuple[int, ...],
        bounds: tuple[float, float],
    ) -> None:
        """Refuses examples that no run should start with.

        Args:
            what: How messages call these examples: "the training data of `mnist`".
            num_classes: Labels must be in 0 to num_classes - 1.
            shape: Shape that each example must have.
            bounds: Range that float inputs must lie in; uint8 inputs always fit in [0, 1].

        Raises:
            ValueError: If there are no examples, a shape is wrong, a label out of range, a value
                not finite or out of bounds; names the first such row.
        """
        if len(self) == 0:
            raise ValueError(
                violation(f"{what[0].upper()}{what[1:]}", "not be empty", "0 examples")
            )
        if tuple(self.x.shape[1:]) != shape:
            raise ValueError(
                violation(f"Examples in {what}", f"have shape {shape}", tuple(self.x.shape[1:]))
            )
        _check_labels(self.y, what, num_classes)
        _check_values(self.x, what, bounds)


@dataclass(frozen=True)
class Splits:
    """One data set, read: its three splits, the shape of an example and where it came from.

    Making one checks it, so that nothing after reading needs to ask.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    shape: tuple[int, ...]
    """Shape of one example: (channels, height, width), or (length, channels) for sequences."""
    bounds: tuple[float, float]
    """Range of the inputs after conversion to floats; uint8 is divided by 255."""
    origin: Mapping[str, object]
    """For the run's record, JSON-able: `source`, `licence`, `files` (name to checksum), `verified`
    (whether the checksums are those of the official files), `examples` (count by split) and
    `remarks` (sentences that a report must repeat)."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(violation("A data set", "have 2 classes or more", self.num_classes))
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(violation("`bounds`", "be (low, high) with low < high", self.bounds))
        for name in ("train", "validation", "test"):
            split: Split = getattr(self, name)
            split.check(
                f"the {name} split of {self.origin.get('source', 'this data set')}",
                num_classes=self.num_classes,
                shape=self.shape,
                bounds=self.bounds,
            )
        types = {split.x.dtype for split in (self.train, self.validation, self.test)}
        if len(types) > 1:
            raise ValueError(
                violation("Splits", "be stored in one type", ", ".join(sorted(map(str, types))))
            )
        if torch.uint8 in types and self.bounds != (0.0, 1.0):
            raise ValueError(
                violation(
                    "`bounds` of uint8 inputs",
                    "be (0.0, 1.0), as batches divide them by 255",
                    self.bounds,
                    "Store floats for another range.",
                )
            )


class Dataset(Named, ABC):
    """Settings of a data set; reading it makes the splits from them and from nothing else."""

    kind: ClassVar[str] = "dataset"

    @abstractmethod
    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """Reads and checks the files and splits off the validation set.

        The test split depends on the settings alone, so that runs with different seeds are compared
        on the same examples; `noise` chooses the validation examples (and, where the settings ask
        for fewer training examples than there are, those).

        Args:
            data_dir: Where files are looked for. None: the user named no directory, neither by
                --data-dir nor by the environment variable ROBUSTSSM_DATA (which only the entry
                points read); sets that come with the installation need none.
            noise: Source of the choice.

        Raises:
            FileNotFoundError: Says which file is missing, and what to put where.
            CorruptFile: Names the file and what is wrong with it.
            ValueError: If labels are out of range, values not finite, or a split is empty.
        """


def _check_labels(y: Int[Tensor, " n"], what: str, num_classes: int) -> None:
    wrong = (y < 0) | (y >= num_classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            violation(
                f"Labels in {what}",
                f"be integers from 0 to {num_classes - 1}",
                f"{int(y[row])} in row {row}",
            )
        )


def _check_values(x: Tensor, what: str, bounds: tuple[float, float]) -> None:
    if x.dtype == torch.uint8 or x.numel() == 0:
        return
    low, high = torch.aminmax(x)  # NaN shows in both
    if not (torch.isfinite(low) and torch.isfinite(high)):
        finite = torch.isfinite(x).flatten(1).all(1)
        row = int((~finite).nonzero()[0])
        value = x[row][~torch.isfinite(x[row])].flatten()[0]
        raise ValueError(
            violation(
                f"Values in {what}",
                f"be finite in {str(x.dtype).removeprefix('torch.')}",
                f"{value.item()} in row {row} ({int((~finite).sum())} such rows)",
                "Remove or repair these rows.",
            )
        )
    if (
        low < bounds[0] or high > bounds[1]
    ):  # in the dtype of x, which rounds the bounds as it did x
        row = int(((x < bounds[0]) | (x > bounds[1])).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            violation(
                f"Values in {what}",
                f"lie in the bounds [{bounds[0]}, {bounds[1]}]",
                f"[{low.item()}, {high.item()}], first in row {row}",
                "Rescale the data or state the bounds they have.",
            )
        )
