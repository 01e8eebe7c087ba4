"""The threat set of every example of a batch, in the coordinates that attacks move in."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.restrictions import Band
from robustssm.core.rng import Noise
from robustssm.ops import balls
from robustssm.ops.balls import Norm

_ROUNDS = 20  # of alternating projections onto the linf ball and a band; then shrunk to fit


@dataclass(frozen=True)
class Region:
    """{z : |z - x| <= eps, low <= z <= high}, one per example; with a band, z - x lies in it too.

    Where an adversary may not touch a coordinate, low = high = x there. Attacks need to know
    nothing else: they project after every step, and move along `ascend` or `reachable` gradients.
    """

    x: Float[Tensor, "batch *shape"]
    norm: Norm
    eps: float
    low: Float[Tensor, "batch *shape"]
    """The box, (batch, ...); -inf where there is a band, as inputs are clipped behind it."""
    high: Float[Tensor, "batch *shape"]
    band: Band | None = None
    free: Bool[Tensor, "batch *shape"] | None = None
    """What may be touched; None for everything."""
    scale: Float[Tensor, "..."] | None = None
    """Unit of these coordinates, in the units of the input; None for 1."""
    clip: tuple[float, float] | None = None
    """Where inputs are cut when a band lets them leave the bounds."""

    def select(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " batch"]) -> "Region":
        """The threat sets of some examples."""
        free = None if self.free is None else self.free[rows]
        ends = self.low[rows], self.high[rows]
        return Region(
            self.x[rows], self.norm, self.eps, *ends, self.band, free, self.scale, self.clip
        )

    def project(self, points: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The nearest point of the threat set, exactly; under linf or l1 in a band, one near it.

        NaN coordinates become those of `x`. At most eps (1 + 1e-6) away from `x`.
        """
        if self.band is not None and self.eps > 0:
            return self._project_into_band(points, self.band)
        if self.norm == "linf" and self.eps > 0:
            return torch.where(points.isnan(), self.x, points).clamp(*self.interval)
        return balls.project(
            points, self.x, norm=self.norm, eps=self.eps, bounds=(self.low, self.high)
        )

    @cached_property
    def interval(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value of every coordinate: under l2 and l1, the box."""
        if self.norm != "linf":
            return self.low, self.high
        return balls.interval(self.x, eps=self.eps, bounds=(self.low, self.high))

    def reachable(self, gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The part of a gradient along which points can move; NaN counts as zero."""
        gradient = torch.nan_to_num(gradient, nan=0.0)
        if self.free is not None:
            gradient = gradient * self.free
        return gradient if self.band is None else self.band.filter(gradient)

    def ascend(self, gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The direction of unit norm in which the loss rises fastest; zero for a zero gradient.

        Under linf or l1 in a band: that of the filtered gradient, to be projected afterwards.
        """
        return balls.ascend(self.reachable(gradient), norm=self.norm)

    def sample(self, noise: Noise) -> Float[Tensor, "batch *shape"]:
        """Uniform draws from the ball around `x`, projected onto the threat set."""
        drawn = balls.sample(self.x, norm=self.norm, eps=self.eps, noise=noise)
        return self.project(drawn if self.free is None else torch.where(self.free, drawn, self.x))

    def distance(self, points: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """The norm of points - x per example, in float64."""
        return balls.distance(points, self.x, norm=self.norm)

    def inputs(self, points: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Points in the units of the model's inputs; row by row, the same for every example."""
        if self.scale is not None:
            points = points * self.scale
        return points if self.clip is None else points.clamp(*self.clip)

    @property
    def whole(self) -> bool:
        """Whether nothing restricts the ball and the box."""
        return self.plain and self.free is None and self.band is None

    @property
    def plain(self) -> bool:
        """Whether points are inputs, with nothing between."""
        return self.scale is None and self.clip is None

    def _project_into_band(self, points: Tensor, band: Band) -> Tensor:
        delta = band.filter(torch.where(points.isnan(), 0.0, points - self.x))
        if self.norm != "l2":
            delta = self._alternate(delta, band)
        length = balls.distance(self.x + delta, self.x, norm=self.norm)
        shrink = (self.eps * (1 - 1e-7) / length.clamp(min=1e-300)).clamp(max=1.0)
        return self.x + delta * balls.over(shrink.to(delta.dtype), delta)

    def _alternate(self, delta: Tensor, band: Band) -> Tensor:
        """Dykstra's projections onto the ball and the band; the result is in the band."""
        zero = torch.zeros_like(delta)
        inside, outside = delta, zero
        for _ in range(_ROUNDS):
            into = inside + outside
            cut = balls.project(
                into, zero, norm=self.norm, eps=self.eps, bounds=(-torch.inf, torch.inf)
            )
            outside = into - cut
            inside = band.filter(cut)
        return inside
