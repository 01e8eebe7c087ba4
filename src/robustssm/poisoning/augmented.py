"""Random shifts and flips of images that a gradient goes through, twice if need be."""

from typing import Annotated

import torch
from einops import einsum
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise


@settings
class ShiftFlip:
    """Moves each image by up to `shift` pixels each way, uniformly, and mirrors every second one.

    Between pixels values are interpolated bilinearly, and beyond the edge they are 0; so the result
    is a linear function of the image. With both off, a call returns its argument itself.
    """

    shift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    flip: bool = False

    def __call__(self, x: Float[Tensor, "batch ..."], noise: Noise) -> Float[Tensor, "batch ..."]:
        """Augments a batch.

        Args:
            x: Images, (batch, channels, height, width).
            noise: Source of the draws.

        Raises:
            ValueError: If `x` are no images.
        """
        if self.shift == 0 and not self.flip:
            return x
        if x.ndim != 4:
            raise ValueError(
                violation(
                    "Inputs of `ShiftFlip`",
                    "be images (batch, channels, height, width)",
                    f"shape {tuple(x.shape)}",
                    "For sequences, set shift=0 and flip=False.",
                )
            )
        moves = noise.fork("shift").uniform(
            len(x), 2, low=-self.shift, high=self.shift, dtype=torch.float64, device=x.device
        )
        rows, columns = _moving(moves[:, 0], x.shape[2]), _moving(moves[:, 1], x.shape[3])
        if self.flip:
            mirrored = noise.fork("flip").integers(len(x), 1, 1, high=2, device=x.device)
            columns = torch.where(mirrored == 1, columns.flip(1), columns)
        pattern = "batch row h, batch c h w, batch column w -> batch c row column"
        return einsum(rows.to(x), x, columns.to(x), pattern)


def _moving(by: Float[Tensor, " batch"], size: int) -> Float[Tensor, "batch size size"]:
    """Matrices that move lines by so many pixels: entry (i, j) is max(0, 1 - |j - i - by|)."""
    at = torch.arange(size, device=by.device, dtype=by.dtype)
    return (1 - (at - at[:, None] - by[:, None, None]).abs()).clamp(min=0)
