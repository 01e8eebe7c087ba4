"""Which part of an input an adversary may touch: positions, channels, frequencies.

An example is a sequence of positions with channels: (length,) has one channel, (length, channels)
is as it says, and an image (channels, height, width) is read by raster scan, so that position t is
pixel (t // width, t % width).
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from robustssm.core.config import settings
from robustssm.core.errors import violation


@settings
class Window:
    """`length` consecutive positions: the first, the last, or any one window of the adversary's.

    "anywhere" means one window per example out of those that begin at a multiple of `stride` (and
    the last): attacks try them all, one after the other, so a small stride costs that many attacks.
    """

    length: Annotated[int, Field(ge=1)]
    where: Literal["prefix", "suffix", "anywhere"] = "prefix"
    stride: Annotated[int, Field(ge=1)] = 1
    """Distance between windows, for "anywhere"."""

    def __post_init__(self) -> None:
        if self.stride != 1 and self.where != "anywhere":
            raise ValueError(
                f"`Window(stride=...)` has an effect only with where='anywhere'; got "
                f"stride={self.stride} and where='{self.where}'. Leave it out."
            )

    def starts(self, length: int) -> tuple[int, ...]:
        """First positions of the windows in a sequence of that length.

        Raises:
            ValueError: If the window is longer than the sequence.
        """
        if self.length > length:
            raise ValueError(
                violation(
                    "`Window(length=...)`",
                    f"be at most the length of the inputs, {length}",
                    f"length={self.length}",
                )
            )
        last = length - self.length
        if self.where == "prefix":
            return (0,)
        if self.where == "suffix":
            return (last,)
        return tuple(dict.fromkeys((*range(0, last + 1, self.stride), last)))


@settings
class Band:
    """Perturbations made of frequencies from `low` to `high`; 1 is half the sampling rate.

    Frequencies are those of the discrete Fourier transform along the positions, for an image along
    both of its axes, where the higher of the two counts. What leaves the input's bounds after
    adding the perturbation is clipped, as a sensor would; the band is that of the perturbation.
    """

    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    high: Annotated[float, Field(ge=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(
                violation("`Band`", "have low <= high", f"low={self.low}, high={self.high}")
            )

    def filter(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The orthogonal projection of perturbations onto the band."""
        if not delta.numel():
            return delta
        axes = (2, 3) if delta.dim() == 4 else (1,)
        sizes = tuple(delta.shape[axis] for axis in axes)
        kept = self._kept(sizes, delta.device)
        if delta.dim() == 3:
            kept = kept[:, None]
        spectrum = torch.fft.rfftn(delta, dim=axes)
        return torch.fft.irfftn(spectrum * kept, s=sizes, dim=axes)

    def _kept(self, sizes: tuple[int, ...], device: torch.device) -> Bool[Tensor, "..."]:
        along = 2 * torch.fft.rfftfreq(sizes[-1], device=device, dtype=torch.float64)
        if len(sizes) == 2:
            across = 2 * torch.fft.fftfreq(sizes[0], device=device, dtype=torch.float64).abs()
            along = torch.maximum(across[:, None], along)
        return (along >= self.low - 1e-12) & (along <= self.high + 1e-12)


def layout(shape: tuple[int, ...]) -> tuple[int, int]:
    """Positions and channels of one example.

    Raises:
        ValueError: If the example is neither a vector, a sequence nor an image.
    """
    if len(shape) == 1:
        return shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        return shape[1] * shape[2], shape[0]
    raise ValueError(
        violation(
            "A threat restricted to positions or channels",
            "be about examples of shape (length,), (length, channels) or (channels, height, width)",
            f"examples of shape {shape}",
        )
    )


def over_positions(
    values: Bool[Tensor, "... length"], shape: tuple[int, ...]
) -> Bool[Tensor, "..."]:
    """Shapes one value per position so that it broadcasts over examples of that shape."""
    if len(shape) == 1:
        return values
    if len(shape) == 2:
        return values[..., None]
    return values.reshape(*values.shape[:-1], 1, *shape[1:])


def over_channels(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Shapes one value per channel, (channels,), so that it broadcasts over examples."""
    return values[:, None, None] if len(shape) == 3 else values
