"""Random crops and flips of whole batches, on their device, one stream per image."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise


@settings
class Augmentation:
    """Shifts each image by up to `crop_padding` pixels each way, and mirrors every second one.

    The shift is a crop, at a uniformly random place, of the image padded with zeros; offsets and
    mirroring are drawn independently, so that switching one on leaves the draws of the other. With
    both off, a call returns its argument itself.
    """

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    def __call__(self, x: Float[Tensor, "batch ..."], noise: Noise) -> Float[Tensor, "batch ..."]:
        """Augments a batch in one gather.

        Args:
            x: Images, (batch, channels, height, width).
            noise: Source of the draws; of one stream per image if batching is not to matter.

        Returns:
            Images of the same shape, dtype and device.

        Raises:
            ValueError: If `x` are no images.
        """
        if self.crop_padding == 0 and not self.flip:
            return x
        if x.ndim != 4:
            raise ValueError(
                violation(
                    "Inputs of `Augmentation`",
                    "be images (batch, channels, height, width)",
                    f"shape {tuple(x.shape)}",
                    "For sequences, set crop_padding=0 and flip=False.",
                )
            )
        height, width = x.shape[2:]
        rows, columns = self._offsets(len(x), noise, x.device)
        row_index = rows[:, None] + torch.arange(height, device=x.device)
        along = torch.arange(width, device=x.device).expand(len(x), width)
        if self.flip:
            mirrored = noise.fork("flip").integers(len(x), 1, high=2, device=x.device)
            along = torch.where(mirrored == 1, width - 1 - along, along)
        column_index = columns[:, None] + along
        padded = F.pad(x, (self.crop_padding,) * 4)
        place = row_index[:, :, None] * padded.shape[3] + column_index[:, None, :]
        per_channel = place.flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return padded.flatten(2).gather(2, per_channel).view_as(x)

    def _offsets(
        self, batch: int, noise: Noise, device: torch.device
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        places = 2 * self.crop_padding + 1
        drawn = noise.fork("crop").integers(batch, 2, high=places, device=device)
        return drawn[:, 0], drawn[:, 1]
