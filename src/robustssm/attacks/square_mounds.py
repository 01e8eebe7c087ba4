"""What a Square attack proposes under l2 and l1: mass moves into mounds (Square: square.py)."""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.region import Region
from robustssm.attacks.square_canvas import Canvas
from robustssm.attacks.square_proposals import Proposals
from robustssm.core.rng import Noise
from robustssm.ops.balls import over

_TINY = 1e-12  # keeps empty windows from dividing by zero, as the authors' code does


class Mounds(Proposals):
    """l2 and l1: mass moves from one window to another, where it takes the shape of two mounds.

    With delta = x_best - x, a window W1 that receives and a window W2 that gives, per channel:

        n = sign mounds + delta[W1] / |delta[W1]|
        n <- n / |n| sqrt(max(eps^2 - |delta|^2, 0) / channels + |delta[W1 or W2]|^2)
        delta[W2] <- 0, then delta[W1] <- n, then delta <- eps delta / |delta|, cut by the box.

    Under l1, n gets the length max(eps - |delta|, 0) + channels |delta[W1 or W2]|, and an exact
    projection comes instead of scaling and cutting. The mounds of an image's window are its upper
    and lower half, or by a draw its left and right one; those of a sequence follow one another.
    Where a mask forbids it, nothing is put.
    """

    corners = 2
    odd = True

    @classmethod
    def draws(cls, canvas: Canvas) -> int:
        """Row and column of two corners, whether the mounds are turned, and the signs."""
        return 5 + canvas.size[0]

    @classmethod
    def start(cls, region: Region, noise: Noise) -> Float[Tensor, "batch *shape"]:
        """Tiles of mounds, about five to a side, with a sign per tile and channel.

        From the authors' offset, so that an image has an empty margin where 5 does not divide it.
        """
        canvas, x = Canvas(tuple(region.x.shape[1:])), region.x
        channels, height, width = canvas.size
        side = max((width if canvas.line else min(height, width)) // 5, 1)
        tall, wide = canvas.extents(side)
        margin = max(((width if canvas.line else height) - 5 * side) // 2, 0)
        corners = [
            (0 if canvas.line else margin + tall * row, margin + wide * column)
            for row in range(height // tall)
            for column in range(width // wide)
        ]
        drawn = noise.uniform(len(x), len(corners), 1 + channels, device=x.device)
        shapes = _mounds(canvas, side, region)
        delta = torch.zeros_like(canvas.lay(x))
        for number, (top, left) in enumerate(corners):
            tile = delta[:, :, top : top + tall, left : left + wide]  # cut at the edge
            shape = shapes[(drawn[:, number, 0] > 0.5).long()][:, None]
            signs = torch.where(drawn[:, number, 1:] > 0.5, 1.0, -1.0).to(x.dtype)
            tile += shape[:, :, : tile.shape[2], : tile.shape[3]] * signs[:, :, None, None]
        return _finished(region, canvas, delta)

    def propose(
        self,
        points: Float[Tensor, "pairs *shape"],
        rows: Int[Tensor, " pairs"],
        queries: Int[Tensor, " pairs"],
    ) -> Float[Tensor, "pairs *shape"]:
        """Moves mass between two windows per pair."""
        region, canvas, side = self.region.select(rows), self.canvas, self.stretch.side
        tops, lefts = self.tops[rows, queries], self.lefts[rows, queries]
        first = canvas.inside(tops[:, 0], lefts[:, 0], side)
        second = canvas.inside(tops[:, 1], lefts[:, 1], side)
        delta = canvas.lay(points - region.x)
        order = 2 if region.norm == "l2" else 1
        old = delta * first
        shape = self._placed(tops[:, 0], lefts[:, 0], self.bits[rows, queries, 0], first)
        signs = torch.where(self.positive[rows, queries], 1.0, -1.0).to(points.dtype)
        new = signs[:, :, None, None] * shape + old / (_TINY + _length(old, order))
        if region.free is not None:
            new = new * canvas.lay(region.free.to(new.dtype))
        spare = self._spare(delta, first | second, order)
        new = new / (_TINY + _length(new, order)) * spare
        return _finished(region, canvas, torch.where(first, new, delta * ~second))

    @cached_property
    def _shapes(self) -> Tensor:
        return _mounds(self.canvas, self.stretch.side, self.region)

    def _spare(self, delta: Tensor, windows: Tensor, order: int) -> Tensor:
        """The length that the first window gets, per channel."""
        eps, channels = self.region.eps, delta.shape[1]
        held = _length(delta * windows, order)
        used = _length(delta.flatten(1)[:, None, None], order)
        if order == 1:
            return ((eps - used).clamp(min=0) / channels + held) * channels
        return ((eps**2 - used**2).clamp(min=0) / channels + held**2).sqrt()

    def _placed(self, top: Tensor, left: Tensor, turned: Tensor, inside: Tensor) -> Tensor:
        """The mounds in their windows, zero elsewhere."""
        _, tall, wide = self._shapes.shape
        _, height, width = self.canvas.size
        down = (torch.arange(height, device=top.device) - top[:, None]).clamp(0, tall - 1)
        along = (torch.arange(width, device=top.device) - left[:, None]).clamp(0, wide - 1)
        placed = self._shapes[turned.long()[:, None, None], down[:, :, None], along[:, None]]
        return placed[:, None] * inside


def _finished(region: Region, canvas: Canvas, delta: Tensor) -> Tensor:
    """Brings perturbations to the length eps under l2, and into the threat set."""
    delta = canvas.lift(delta)
    if region.free is not None:
        delta = delta * region.free
    if region.norm == "l2":
        length = delta.flatten(1).norm(dim=1) + _TINY
        delta = delta * over(region.eps / length, delta)
    return region.project(region.x + delta)


def _length(values: Tensor, order: int) -> Tensor:
    return values.norm(p=order, dim=(2, 3), keepdim=True)


def _mounds(canvas: Canvas, side: int, region: Region) -> Tensor:
    """Two mounds of opposite sign side by side, of length 1; (2, tall, wide), the second turned."""
    order = 2 if region.norm == "l2" else 1
    half = side // 2
    if canvas.line:
        parts = [_mound(1, half, order), -_mound(1, side - half, order)]
    else:
        parts = [_mound(half, side, order), -_mound(side - half, side, order)]
    shape = torch.cat(parts, 1 if canvas.line else 0)
    shape = shape / shape.norm(p=order)
    turned = shape if canvas.line else shape.T
    return torch.stack((shape, turned)).to(region.x)


def _mound(height: int, width: int, order: int) -> Tensor:
    """Sum over k >= d of 1 / (k + 1)^(2 or 4), d the distance from the middle cell; length 1."""
    down = (torch.arange(height) - height // 2).abs()
    along = (torch.arange(width) - width // 2).abs()
    last = max(height // 2, width // 2)
    terms = 1 / (torch.arange(last + 1, dtype=torch.float64) + 1) ** (2 if order == 2 else 4)
    tails = terms.flip(0).cumsum(0).flip(0)
    mound = tails[torch.maximum(down[:, None], along)]
    return mound / mound.norm(p=order) if mound.numel() else mound
