"""What an adversary may do to an input: a norm, a radius, and the range that inputs live in."""

import math
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

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

    `eps` also reads "8/255", so that command lines and recipes may say what papers say.
    """

    norm: Norm = "linf"
    eps: Annotated[float, BeforeValidator(_read_fraction), Field(ge=0, allow_inf_nan=False)]
    """Radius in the units of the input."""
    bounds: tuple[float, float] = (0.0, 1.0)

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

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """The nearest point to `x_adv` in the threat set of `x`: exact, for l2 as well.

        Args:
            x_adv: Any points, (batch, ...); NaN coordinates become those of `x`.
            x: Clean inputs, (batch, ...), within bounds.

        Returns:
            Points exactly in bounds, at most eps (1 + 1e-6) from `x`; at eps = 0, `x` bit for bit.
        """
        return balls.project(x_adv, x, norm=self.norm, eps=self.eps, bounds=self.bounds)

    def ascend(self, gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The direction of unit norm in which the loss rises fastest; zero for a zero gradient."""
        return balls.ascend(gradient, norm=self.norm)

    def sample(
        self, x: Float[Tensor, "batch *shape"], noise: Noise
    ) -> Float[Tensor, "batch *shape"]:
        """Uniform draws from the ball around `x`, projected onto the threat set."""
        drawn = balls.sample(x, norm=self.norm, eps=self.eps, noise=noise)
        return self.project(drawn, x)

    def distance(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """The norm of x_adv - x per example, (batch,), in float64."""
        return balls.distance(x_adv, x, norm=self.norm)

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
