"""The plane that windows of a Square attack lie in, and how large they are (Square: square.py)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.core.errors import Inapplicable

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, counted from 0, after which the share of the plane that a window covers is halved."""


class Stretch(NamedTuple):
    """Consecutive queries whose windows have one size."""

    first: int
    after: int
    side: int


@dataclass(frozen=True)
class Canvas:
    """One example as channels over a plane: an image as it is, a sequence as a single row.

    Windows are squares of an image (channels, height, width), and runs of consecutive positions of
    a sequence (length, channels) or a vector (length,).
    """

    shape: tuple[int, ...]
    """Of one example."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 3:
            raise Inapplicable(
                "`Square` needs examples of shape (length,), (length, channels) or (channels, "
                f"height, width), as its windows are of these; got {self.shape}. Reshape the "
                "inputs, or wrap the model in a function that does."
            )

    @property
    def line(self) -> bool:
        """Whether windows are runs of positions, not squares."""
        return len(self.shape) < 3

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        if len(self.shape) == 3:
            return self.shape[0], self.shape[1], self.shape[2]
        return (self.shape[1] if len(self.shape) == 2 else 1), 1, self.shape[0]

    def lay(
        self, points: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Points as channels over the plane."""
        if len(self.shape) == 3:
            return points
        if len(self.shape) == 2:
            return points.transpose(1, 2)[:, :, None]
        return points[:, None, None]

    def lift(
        self, laid: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch *shape"]:
        """The inverse of `lay`."""
        if len(self.shape) == 3:
            return laid
        if len(self.shape) == 2:
            return laid[:, :, 0].transpose(1, 2)
        return laid[:, 0, 0]

    def extents(self, side: int) -> tuple[int, int]:
        """Height and width of a window of that side."""
        return (1 if self.line else side), side

    def choices(self, side: int) -> tuple[int, int]:
        """Rows and columns that a window may begin at: 0, ..., choice - 1.

        The last row and column are left out on images, as by the authors' code, and only there.
        """
        _, height, width = self.size
        if self.line:
            return 1, width - side + 1
        return max(height - side, 1), max(width - side, 1)

    def side(self, query: int, *, share: float, odd: bool) -> int:
        """Side of the window of a query.

        sqrt(p H W) for images and p L for sequences, rounded, where the share p halves after each
        of `HALVINGS`; at least 1, or odd and at least 3; at most what fits.

        Args:
            query: Number of the query, from 0.
            share: p at query 0.
            odd: Whether sides are odd and at least 3.
        """
        _, height, width = self.size
        share = share / 2 ** sum(query > last for last in HALVINGS)
        side = round(share * width) if self.line else round(math.sqrt(share * height * width))
        side = max(side, 3 if odd else 1)
        if odd and side % 2 == 0:
            side += 1
        return min(side, width if self.line else min(height, width))

    def stretches(
        self, queries: int, *, share: float, odd: bool, longest: int
    ) -> Iterator[Stretch]:
        """All queries in order, cut where the size of windows changes; arguments as `side`.

        Args:
            queries: How many.
            share: As for `side`.
            odd: As for `side`.
            longest: Most queries of a stretch.
        """
        first = 0
        changes = [last + 1 for last in HALVINGS if last + 1 < queries]
        for after, following in zip([*changes, queries], [*changes, None], strict=True):
            side = self.side(first, share=share, odd=odd)
            if following is not None and self.side(following, share=share, odd=odd) == side:
                continue
            for begin in range(first, after, longest):
                yield Stretch(begin, min(begin + longest, after), side)
            first = after

    def inside(
        self, top: Int[Tensor, " rows"], left: Int[Tensor, " rows"], side: int
    ) -> Bool[Tensor, "rows 1 height width"]:
        """Which cells a window covers, one window per row."""
        _, height, width = self.size
        tall, wide = self.extents(side)
        down = torch.arange(height, device=top.device) - top[:, None]
        along = torch.arange(width, device=top.device) - left[:, None]
        covered = ((down >= 0) & (down < tall))[:, :, None] & ((along >= 0) & (along < wide))[
            :, None
        ]
        return covered[:, None]

    def touched(
        self, cells: Bool[Tensor, "batch channels height width"], side: int
    ) -> Bool[Tensor, "batch channels corners"]:
        """Whether the window at each corner, in raster order, holds any of the cells."""
        tall, wide = self.extents(side)
        counts = torch.nn.functional.pad(cells.int(), (1, 0, 1, 0)).cumsum(2).cumsum(3)
        rows = counts[:, :, tall:] - counts[:, :, : counts.shape[2] - tall]
        return (rows[..., wide:] - rows[..., : counts.shape[3] - wide] > 0).flatten(2)

    def corner(
        self, top: Int[Tensor, "..."], left: Int[Tensor, "..."], side: int
    ) -> Int[Tensor, "..."]:
        """The number of a corner in the order of `touched`."""
        return top * (self.size[2] - side + 1) + left
