"""What an adversary may do to an input: a norm, a radius, and the range that inputs live in."""

import math
from typing import Annotated, Any

import torch
from jaxtyping import Float, Shaped
from pydantic import BeforeValidator, Field
from torch import Tensor

from robustssm.attacks.region import Region
from robustssm.attacks.restrictions import Band, Window, layout, over_channels, over_positions
from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.ops import balls
from robustssm.ops.balls import Norm

TOLERANCE = 1e-6
"""How far rounding may take a clean input out of its bounds, in the units of the input."""


def _read_fraction(value: Any) -> Any:
    """Reads "8/255"; everything else is left to the type."""
    if isinstance(value, str) and value.count("/") == 1:
        above, below = value.split("/")
        try:
            return float(above) / float(below)
        except (ValueError, ZeroDivisionError):
            return value
    return value


@settings
class Threat:
    """The threat set {z : |z - x| <= eps and low <= z <= high}, norms over all axes of an example.

    `eps` also reads "8/255", so that command lines and recipes may say what papers say. The set may
    be restricted to part of the input; what may not be touched is then equal to `x`, bit for bit.
    """

    norm: Norm = "linf"
    eps: Annotated[float, BeforeValidator(_read_fraction), Field(ge=0, allow_inf_nan=False)]
    """Radius in the units of the input."""
    bounds: tuple[float, float] = (0.0, 1.0)
    window: Window | None = None
    """Positions that may be touched; None for all."""
    channels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Channels that may be touched, counted from 0; None for all."""
    channel_scales: (
        Annotated[
            tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)
        ]
        | None
    ) = None
    """Per channel, the unit in which its perturbation is measured: under linf, eps * scale."""
    band: Band | None = None
    """Frequencies that a perturbation may have; None for all."""

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                violation(
                    "`Threat(bounds=...)`",
                    "be two finite numbers, low < high",
                    f"({low}, {high})",
                    "For inputs without a natural range, give one that holds all the data.",
                )
            )
        if self.band is not None and (self.window or self.channel_scales):
            raise ValueError(
                violation(
                    "`Threat(band=...)`",
                    "stand alone or with `channels`, as what lives in a window or is scaled by "
                    "channel has no band of its own",
                    f"window={self.window}, channel_scales={self.channel_scales}",
                )
            )

    @property
    def restricted(self) -> bool:
        """Whether the set is smaller, or measured otherwise, than ball and box."""
        parts = (self.window, self.channels, self.channel_scales, self.band)
        return any(part is not None for part in parts)

    def regions(
        self,
        x: Float[Tensor, "batch *shape"],
        *,
        mask: Shaped[Tensor, "..."] | None = None,
    ) -> tuple[Region, ...]:
        """The set around each example; several only for a window that may be anywhere.

        Args:
            x: Clean inputs, (batch, ...), within bounds.
            mask: What may be touched: (batch, ...) like `x`, or (batch, positions); None for all.

        Returns:
            Regions whose union is the set.

        Raises:
            ValueError: If a restriction or the mask does not fit the shape of the inputs.
        """
        shape = tuple(x.shape[1:])
        free = None if mask is None else _like(mask, x)
        if self.channels is not None:
            free = _both(free, self._channel_mask(x))
        if self.window is None:
            return (self._region(x, free),)
        length, _ = layout(shape)
        at = torch.arange(length, device=x.device)
        windows = [
            over_positions((at >= start) & (at < start + self.window.length), shape)
            for start in self.window.starts(length)
        ]
        return tuple([self._region(x, _both(free, window.expand_as(x))) for window in windows])

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The nearest point to `x_adv` in the threat set of `x`: exact, for every norm.

        Args:
            x_adv: Any points, (batch, ...); NaN coordinates become those of `x`.
            x: Clean inputs, (batch, ...), within bounds.

        Returns:
            Points exactly in bounds, at most eps (1 + 1e-6) from `x`; at eps = 0, `x` bit for bit.
            Under linf or l1 in a band they are near the nearest.

        Raises:
            ValueError: If the window may be anywhere: which one, only an attack can say.
        """
        region = self._only(x)
        points = x_adv if region.scale is None else x_adv / region.scale
        return self.restore(region.project(points), region, x)

    def restore(
        self,
        points: Float[Tensor, "batch *shape"],
        region: Region,
        x: Float[Tensor, "batch *shape"],
    ) -> Float[Tensor, "batch *shape"]:
        """Points of a region as inputs, with what rounding did on the way undone.

        Args:
            points: In the region's coordinates, within the region.
            region: One of `regions(x)`.
            x: The clean inputs.
        """
        if region.whole or self.eps == 0:
            return points if region.whole else x.clone()
        inputs = region.inputs(points)
        if region.scale is None:
            inputs = balls.project(inputs, x, norm=self.norm, eps=self.eps, bounds=self.bounds)
        elif self.norm == "linf":
            radius = self.eps * region.scale
            inputs = inputs.clamp(*balls.interval(x, eps=radius, bounds=self.bounds))
        else:
            excess = self.distance(inputs, x) / self.eps
            kept = torch.where(excess > 1, (1 - 1e-6) / excess, 1.0).to(x.dtype)
            inputs = (x + balls.over(kept, x) * (inputs - x)).clamp(*self.bounds)
        return inputs if region.free is None else torch.where(region.free, inputs, x)

    def ascend(self, gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The direction of unit norm in which the loss rises fastest; zero for a zero gradient."""
        return balls.ascend(gradient, norm=self.norm)

    def sample(
        self, x: Float[Tensor, "batch *shape"], noise: Noise
    ) -> Float[Tensor, "batch *shape"]:
        """Uniform draws from the ball around `x`, projected onto the threat set."""
        region = self._only(x)
        return self.restore(region.sample(noise), region, x)

    def distance(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """The norm of x_adv - x per example, (batch,), in float64, per `channel_scales`."""
        difference = x_adv.double() - x.double()
        if self.channel_scales is not None:
            difference = difference / self._scale(x).double()
        return balls.distance(difference, torch.zeros_like(difference), norm=self.norm)

    def _region(self, x: Tensor, free: Tensor | None) -> Region:
        bounds = self.bounds
        low, high = x.clamp(max=bounds[0]), x.clamp(min=bounds[1])  # widened to hold x
        scale = clip = None
        if self.band is not None:
            low, high = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
            clip = bounds
        if self.channel_scales is not None:
            scale = self._scale(x)
            x, low, high = x / scale, low / scale, high / scale
        if free is not None:
            low, high = torch.where(free, low, x), torch.where(free, high, x)
        return Region(x, self.norm, self.eps, low, high, self.band, free, scale, clip)

    def _only(self, x: Tensor) -> Region:
        regions = list(self.regions(x))
        if len(regions) > 1:
            raise ValueError(
                "A window that may be anywhere is a union of sets, onto which there is no "
                "projection; run an attack, which tries its windows one after the other."
            )
        return regions[0]

    def _channel_mask(self, x: Tensor) -> Tensor:
        assert self.channels is not None
        shape = tuple(x.shape[1:])
        _, count = layout(shape)
        if max(self.channels) >= count:
            raise ValueError(
                violation(
                    "`Threat(channels=...)`",
                    f"name channels of the inputs, which have {count}, counted from 0",
                    str(self.channels),
                )
            )
        chosen = torch.zeros(count, dtype=torch.bool, device=x.device)
        chosen[list(self.channels)] = True
        return over_channels(chosen, shape).expand_as(x)

    def _scale(self, x: Tensor) -> Tensor:
        assert self.channel_scales is not None
        shape = tuple(x.shape[1:])
        _, count = layout(shape)
        if len(self.channel_scales) != count:
            raise ValueError(
                violation(
                    "`Threat(channel_scales=...)`",
                    f"have one value per channel of the inputs, {count}",
                    f"{len(self.channel_scales)} values",
                )
            )
        return over_channels(
            torch.tensor(self.channel_scales, dtype=x.dtype, device=x.device), shape
        )

    def check(self, x: Float[Tensor, "batch ..."], *, attack: str) -> None:
        """Refuses clean inputs that no threat set can be drawn around.

        Args:
            x: Clean inputs, (batch, ...), float32 or float64.
            attack: Who asks, for the message: "PGD".

        Raises:
            ValueError: If `x` has lower precision, is not finite or leaves the bounds by over 1e-6.
        """
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`{attack}` needs inputs in float32 or float64, as eps is lost in the rounding of "
                f"anything less; got {x.dtype}. Let autocast lower the precision inside the model."
            )
        if not x.numel():
            return
        low, high = torch.stack(x.aminmax()).tolist()  # one transfer from the device
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~x.isfinite()).sum())
            raise ValueError(
                f"`{attack}` needs finite inputs; got {count} values that are NaN or infinite. "
                "Repair or remove these examples."
            )
        if low < self.bounds[0] - TOLERANCE or high > self.bounds[1] + TOLERANCE:
            raise ValueError(
                f"`{attack}` needs inputs inside `threat.bounds`: expected values in "
                f"[{self.bounds[0]:g}, {self.bounds[1]:g}], got [{low:g}, {high:g}]. "
                "Normalise inside the model, not before the attack."
            )


def _both(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first & second


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """A mask in the shape of `x`, from that shape or from (batch, positions)."""
    if mask.dtype != torch.bool:
        raise ValueError(
            violation(
                "`mask`", "be a tensor of booleans, True where touching is allowed", mask.dtype
            )
        )
    shape = tuple(x.shape[1:])
    if mask.shape == x.shape:
        return mask.to(x.device)
    if mask.dim() == 2 and tuple(mask.shape) == (len(x), layout(shape)[0]):
        return over_positions(mask.to(x.device), shape).expand_as(x)
    raise ValueError(
        violation(
            "`mask`",
            f"have the shape of the inputs, {tuple(x.shape)}, or (batch, positions)",
            tuple(mask.shape),
        )
    )
