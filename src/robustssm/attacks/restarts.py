"""The worst of several runs of a search, per example; later runs skip what is fooled."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.ops.balls import over


@dataclass(frozen=True)
class Found:
    """One candidate per example, its loss, and whether it is misclassified."""

    points: Float[Tensor, "batch ..."]
    loss: Float[Tensor, " batch"]
    wrong: Bool[Tensor, " batch"]
    part: Int[Tensor, " batch"] | None = None
    """Which search of several each candidate is from, for the record; None if not said."""

    def better_than(self, other: "Found") -> Bool[Tensor, " batch"]:
        """Misclassified beats correct; among equals, the higher loss. A NaN loss is not higher."""
        return (self.wrong & ~other.wrong) | (
            (self.wrong == other.wrong) & (self.loss > other.loss)
        )

    def best(self, other: "Found") -> "Found":
        """The better candidate of each example; this one's where they are equal."""
        take = other.better_than(self)
        return Found(
            torch.where(over(take, self.points), other.points, self.points),
            torch.where(take, other.loss, self.loss),
            torch.where(take, other.wrong, self.wrong),
        )

    def merge(self, rows: Int[Tensor, " rows"], other: "Found") -> "Found":
        """The better candidate, where `other` holds the examples `rows` only."""
        winner = Found(self.points[rows], self.loss[rows], self.wrong[rows]).best(other)
        return Found(
            self.points.index_copy(0, rows, winner.points),
            self.loss.index_copy(0, rows, winner.loss),
            self.wrong.index_copy(0, rows, winner.wrong),
        )


Search = Callable[[Int[Tensor, " rows"], int], Found]
"""Searches from run number `run` for the examples `rows`; one noise stream per example, selected by
`noise.select(rows)`, makes an example's outcome the same whoever else is in `rows`."""


def worst_of(
    runs: int, search: Search, rows: Int[Tensor, " batch"], *, survivors_only: bool = True
) -> Found:
    """Runs a search several times and keeps each example's best candidate.

    Args:
        runs: How often, at least 1.
        search: The search; see `Search`.
        rows: The examples, 0, ..., batch - 1.
        survivors_only: Leave examples out of later runs once they are fooled. The same examples
            are fooled either way; their points are then the first found, not the highest.
    """
    found = search(rows, 0)
    for run in range(1, runs):
        left = rows[~found.wrong] if survivors_only else rows
        if not len(left):
            break
        found = found.merge(left, search(left, run))
    return found
