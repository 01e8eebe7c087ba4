"""How far the next step of Auto-PGD goes (croce2020reliable; under l1 croce2021mind), per row."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Halving:
    """Steps of 2 eps, halved at checkpoints where a row has not risen enough (linf, l2)."""

    size: Float[Tensor, " batch"]
    rises: Float[Tensor, " batch"]
    """Steps since the last checkpoint that raised the loss."""
    last: Float[Tensor, " batch"]
    """The loss after the last step."""
    checked: Float[Tensor, " batch"]
    """The best loss at the last checkpoint."""
    halved: Bool[Tensor, " batch"]
    """Whether the step was halved there."""
    steps: int
    rho: float
    window: int
    """Steps from the last checkpoint to the next."""
    since: int = 0

    @classmethod
    def begin(
        cls, loss: Float[Tensor, " batch"], *, eps: float, steps: int, rho: float
    ) -> "Halving":
        """Before the first step, from the loss at the start."""
        zero = torch.zeros_like(loss)
        # As in the authors' code: `last` begins at 0, not at the start's loss, and at the first
        # checkpoint no row is halved only because its best has stayed the same.
        halved = torch.ones_like(loss, dtype=torch.bool)
        return cls(zero + 2 * eps, zero, zero, loss, halved, steps, rho, max(int(0.22 * steps), 1))

    def select(self, rows: Int[Tensor, " rows"]) -> "Halving":
        """The pace of some rows."""
        return replace(self, **selected(self, rows))

    def update(
        self,
        loss: Float[Tensor, " batch"],
        best_loss: Float[Tensor, " batch"],
        best: Float[Tensor, "batch ..."],
    ) -> Bool[Tensor, " batch"] | None:
        """Takes note of a step; at a checkpoint, says which rows shall go on from their best.

        Args:
            loss: Where the step led.
            best_loss: The highest so far, this one included.
            best: The points of that loss.

        Returns:
            None between checkpoints, else the rows whose step is halved.
        """
        self.rises = self.rises + (loss > self.last)
        self.last = loss
        self.since += 1
        if self.since < self.window:
            return None
        stuck = self.rises <= self.rho * self.window
        stuck |= ~self.halved & (self.checked >= best_loss)
        self.size = torch.where(stuck, self.size / 2, self.size)
        self.rises, self.checked, self.halved = torch.zeros_like(loss), best_loss, stuck
        shorter = self.window - max(int(0.03 * self.steps), 1)
        self.window, self.since = max(shorter, int(0.06 * self.steps), 1), 0
        return stuck


@dataclass
class Sparsity:
    """Steps on the largest coordinates of the gradient, fewer where best points are sparse (l1).

    While a row's best point becomes sparser its steps are eps long, else shorter and shorter.
    """

    size: Float[Tensor, " batch"]
    x: Float[Tensor, "batch ..."]
    top: Float[Tensor, " batch"]
    """Share of the coordinates that a step moves."""
    count: Float[Tensor, " batch"]
    """Coordinates in which the best point differed from `x` at the last checkpoint."""
    room: Float[Tensor, " batch"]
    """Coordinates that may be touched."""
    eps: float
    window: int
    since: int = 0

    @classmethod
    def begin(
        cls,
        x: Float[Tensor, "batch ..."],
        *,
        eps: float,
        steps: int,
        free: Bool[Tensor, "batch ..."] | None = None,
        found: Float[Tensor, "batch ..."] | None = None,
    ) -> "Sparsity":
        """Before the first step.

        Args:
            x: Clean inputs.
            eps: Radius.
            steps: Steps of the run.
            free: What may be touched; None for everything.
            found: The start, where an earlier run has found it; None where it is noise.
        """
        room = x.new_full((len(x),), x[:1].numel())
        room = room if free is None else free.flatten(1).sum(1).to(x.dtype)
        count = room if found is None else _changed(found, x)
        top = torch.full_like(room, 0.2) if found is None else _share(count, room)
        return cls(torch.full_like(room, eps), x, top, count, room, eps, max(int(0.04 * steps), 1))

    def select(self, rows: Int[Tensor, " rows"]) -> "Sparsity":
        """The pace of some rows."""
        return replace(self, **selected(self, rows))

    def update(
        self,
        loss: Float[Tensor, " batch"],
        best_loss: Float[Tensor, " batch"],
        best: Float[Tensor, "batch ..."],
    ) -> Bool[Tensor, " batch"] | None:
        """As `Halving.update`; the rows are those whose best point became sparser."""
        self.since += 1
        if self.since < self.window:
            return None
        count = _changed(best, self.x)
        sparser = count / self.count < 0.95
        shorter = (self.size / 1.5).clamp(min=self.eps / 10)
        self.size = torch.where(sparser, self.eps, shorter)
        self.top, self.count, self.since = _share(count, self.room), count, 0
        return sparser

    def step(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The signs of the gradient's largest coordinates, of l1 norm `size` together."""
        flat = gradient.flatten(1)
        size, length = flat.abs(), flat.shape[1]
        first = (length - self.room) + (1 - self.top) * self.room
        at = first.clamp(0, length - 1).long()
        least = size.sort(dim=1).values.gather(1, at[:, None])
        signs = flat.sign() * (size >= least)
        step = self.size[:, None] * signs / (signs.abs().sum(1, keepdim=True) + 1e-10)
        return step.view(gradient.shape)


Pace = Halving | Sparsity


def selected(state: Any, rows: Int[Tensor, " rows"]) -> dict[str, Tensor]:
    """Some rows of every tensor field of a data class."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}


def _changed(points: Tensor, x: Tensor) -> Tensor:
    return (points != x).flatten(1).sum(1).to(x.dtype)


def _share(count: Tensor, room: Tensor) -> Tensor:
    return count / room.clamp(min=1) / 1.5
