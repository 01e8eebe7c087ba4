"""What every query of a Square attack proposes, given the point so far (Square: square.py).

The draws of a query depend on the example's stream and the query's number alone, so that several
queries can be tried from one point and those after the first success drawn on again from the next.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.region import Region
from robustssm.attacks.square_canvas import Canvas, Stretch
from robustssm.core.rng import Noise

_BLOCK = 2048  # draws per fork of a stream; a size by shape alone, or draws would depend on batches


class Proposals(ABC):
    """The proposals of one stretch of queries for a batch; rows and queries count from its start.

    Axes: one plane per example, see `Canvas`.
    """

    corners = 1
    """Windows per query."""
    odd = False
    """Whether sides of windows are odd and at least 3."""

    def __init__(self, region: Region, noise: Noise, stretch: Stretch):
        """Takes the draws of the stretch.

        Args:
            region: Threat sets of the batch.
            noise: One stream per example, that of the run.
            stretch: Which queries.
        """
        self.region, self.stretch = region, stretch
        self.canvas = Canvas(tuple(region.x.shape[1:]))
        drawn = _drawn(region, noise, stretch, draws=self.draws(self.canvas))
        self._choices = self.canvas.choices(stretch.side)
        self.tops, self.lefts = self._windows(drawn)
        self.bits = drawn[:, :, 2 * self.corners :] > 0.5
        self.positive = self.bits[:, :, self.bits.shape[2] - self.canvas.size[0] :]

    @classmethod
    @abstractmethod
    def draws(cls, canvas: Canvas) -> int:
        """How many numbers a query draws: corners first, then bits, last the channels' signs."""

    @classmethod
    @abstractmethod
    def start(cls, region: Region, noise: Noise) -> Float[Tensor, "batch *shape"]:
        """The points before query 0."""

    @abstractmethod
    def propose(
        self,
        points: Float[Tensor, "pairs *shape"],
        rows: Int[Tensor, " pairs"],
        queries: Int[Tensor, " pairs"],
    ) -> Float[Tensor, "pairs *shape"]:
        """What some queries of some rows propose, from their points so far."""

    def moving(
        self, points: Float[Tensor, "rows *shape"], rows: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows queries"] | None:
        """Which queries propose another point than that they start from; None if not known."""
        return None

    def repeated(self) -> Int[Tensor, "batch queries"]:
        """The last query before each that makes the same proposal from the same point, or -1."""
        codes = self._codes()
        if codes is None:
            return torch.full(self.bits.shape[:2], -1, device=self.bits.device)
        order = codes.argsort(dim=1, stable=True)
        codes = codes.gather(1, order)
        same = codes[:, 1:] == codes[:, :-1]
        before = torch.where(same, order[:, :-1], -1)
        return torch.full_like(order, -1).scatter(1, order[:, 1:], before)

    def _windows(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        corners = drawn[:, :, : 2 * self.corners].unflatten(2, (self.corners, 2))
        ends = torch.tensor(self._choices, device=drawn.device)
        # A draw below 1 may round up to the end, which is no choice.
        places = torch.minimum((corners * ends).long(), ends - 1)
        return places[..., 0], places[..., 1]

    def _codes(self) -> Tensor | None:
        """One number per proposal; None where there are more proposals than numbers."""
        high, wide = self._choices
        if (high * wide) ** self.corners * 2.0 ** self.bits.shape[2] >= 2**62:
            return None
        code = torch.zeros_like(self.tops[..., 0])
        for corner in range(self.corners):
            place = self.tops[..., corner] * wide + self.lefts[..., corner]
            code = code * (high * wide) + place
        for bit in range(self.bits.shape[2]):
            code = code * 2 + self.bits[..., bit]
        return code


class Extremes(Proposals):
    """linf: a window goes to the highest or the lowest allowed values, by a sign per channel.

    That is where x_best + 2 eps sign, clipped to ball and box, lies. In a band it is projected.
    """

    @classmethod
    def draws(cls, canvas: Canvas) -> int:
        """Row and column of the corner, and the signs."""
        return 2 + canvas.size[0]

    @classmethod
    def start(cls, region: Region, noise: Noise) -> Float[Tensor, "batch *shape"]:
        """Vertical stripes: a sign per channel and column; of a sequence, per channel and place."""
        canvas = Canvas(tuple(region.x.shape[1:]))
        channels, _, width = canvas.size
        drawn = noise.uniform(len(region.x), channels, width, device=region.x.device)
        low, high = (canvas.lay(end) for end in region.interval)
        start = canvas.lift(torch.where((drawn > 0.5)[:, :, None], high, low))
        return start if region.band is None else region.project(start)

    def propose(
        self,
        points: Float[Tensor, "pairs *shape"],
        rows: Int[Tensor, " pairs"],
        queries: Int[Tensor, " pairs"],
    ) -> Float[Tensor, "pairs *shape"]:
        """Moves one window per pair."""
        lay = self.canvas.lay
        low, high = (lay(end[rows]) for end in self.region.interval)
        positive = self.positive[rows, queries][:, :, None, None]
        top, left = self.tops[rows, queries, 0], self.lefts[rows, queries, 0]
        inside = self.canvas.inside(top, left, self.stretch.side)
        moved = torch.where(inside, torch.where(positive, high, low), lay(points))
        lifted = self.canvas.lift(moved)
        return lifted if self.region.band is None else self.region.select(rows).project(lifted)

    def moving(
        self, points: Float[Tensor, "rows *shape"], rows: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows queries"] | None:
        """Those whose window is not yet, in every channel, where they would take it."""
        if self.region.band is not None:
            return None
        canvas, side = self.canvas, self.stretch.side
        low, high = (canvas.lay(end[rows]) for end in self.region.interval)
        laid = canvas.lay(points)
        at = canvas.corner(self.tops[rows, :, 0], self.lefts[rows, :, 0], side)
        at = at[:, None].expand(-1, canvas.size[0], -1)
        up = canvas.touched(laid < high, side).gather(2, at)
        down = canvas.touched(laid > low, side).gather(2, at)
        return torch.where(self.positive[rows].transpose(1, 2), up, down).any(1)


def _drawn(region: Region, noise: Noise, stretch: Stretch, *, draws: int) -> Tensor:
    """Uniform draws (batch, queries, draws) in float64; a query's do not depend on the stretch."""
    block = max(1, min(256, _BLOCK // draws))
    pieces = []
    for number in range(stretch.first // block, (stretch.after - 1) // block + 1):
        stream = noise.fork("queries", number)
        shape = (len(region.x), block, draws)
        drawn = stream.uniform(*shape, dtype=torch.float64, device=region.x.device)
        begin, end = stretch.first - number * block, stretch.after - number * block
        pieces.append(drawn[:, max(begin, 0) : end])
    return torch.cat(pieces, 1)
