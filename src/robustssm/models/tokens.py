"""Inputs to sequences of tokens and back: raster, patches, and the released code's order."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import pydantic
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from robustssm.core.config import Named, register, settings
from robustssm.core.errors import violation

Shape = tuple[int, ...]
"""Shape of one example: (channels, height, width) of an image, (length, channels) of a sequence."""


class Tokenizer(Named, ABC):
    """Cuts an input into tokens, without loss: `inverse(tokens(x), shape)` is `x`, bit for bit."""

    kind: ClassVar[str] = "tokens"

    @abstractmethod
    def size(self, shape: Shape) -> tuple[int, int]:
        """Length of the token sequence and channels of a token, for one example of that shape.

        Raises:
            ValueError: If inputs of that shape cannot be cut into these tokens.
        """

    @abstractmethod
    def tokens(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length channels"]:
        """Maps (batch, *shape) to (batch, length, channels).

        Raises:
            ValueError: As `size`.
        """

    @abstractmethod
    def inverse(
        self, tokens: Float[Tensor, "batch length channels"], shape: Shape
    ) -> Float[Tensor, "batch ..."]:
        """Maps (batch, length, channels) back to (batch, *shape).

        Raises:
            ValueError: As `size`, or if the tokens do not come from inputs of that shape.
        """

    def length(self, shape: Shape) -> int:
        """Tokens of one example of that shape."""
        return self.size(shape)[0]

    def channels(self, shape: Shape) -> int:
        """Channels of one token."""
        return self.size(shape)[1]

    def _check(self, tokens: Tensor, shape: Shape) -> None:
        expected = self.size(shape)
        if tuple(tokens.shape[1:]) != expected:
            raise ValueError(
                f"`{type(self).__name__}.inverse` to inputs of shape {shape} needs tokens of shape "
                f"(batch, {expected[0]}, {expected[1]}); got {tuple(tokens.shape)}. "
                "Give the shape that the tokens were made from."
            )


@register("raster")
@settings
class Raster(Tokenizer):
    """Pixel by pixel, row by row, channels last: token t of an image is pixel (t // W, t % W).

    Sequences (batch, length, channels) pass through.

    Source: qi2024exploring, section 3 (inputs of 784 x 1 and 1024 x 3).
    """

    def size(self, shape: Shape) -> tuple[int, int]:
        """(H W, C) of an image (C, H, W); (L, C) of a sequence (L, C)."""
        return _pixels(self, shape)

    def tokens(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length channels"]:
        """Maps (batch, C, H, W) to (batch, H W, C); see `Tokenizer.tokens`."""
        self.size(tuple(x.shape[1:]))
        return rearrange(x, "b c h w -> b (h w) c") if x.ndim == 4 else x

    def inverse(
        self, tokens: Float[Tensor, "batch length channels"], shape: Shape
    ) -> Float[Tensor, "batch ..."]:
        """Maps (batch, H W, C) to (batch, C, H, W); see `Tokenizer.inverse`."""
        self._check(tokens, shape)
        return rearrange(tokens, "b (h w) c -> b c h w", h=shape[1]) if len(shape) == 3 else tokens


@register("patches")
@settings
class Patches(Tokenizer):
    """Squares of `side` x `side` pixels, in raster order, row of patches by row of patches.

    A token holds its C p p values as a convolution's weight does, channel first and then row by
    row; a linear map of tokens is therefore a p x p convolution with stride p.

    Source: dosovitskiy2020image, section 3.1.
    """

    side: Annotated[int, pydantic.Field(ge=1)] = 4
    """Side p of a patch, in pixels; it must divide height and width."""

    def size(self, shape: Shape) -> tuple[int, int]:
        """((H / p)(W / p), C p p) of an image (C, H, W)."""
        if len(shape) != 3:
            raise _refusal(self, shape, "(channels, height, width)")
        channels, height, width = shape
        if height % self.side or width % self.side:
            raise ValueError(
                f"`Patches(side={self.side})` must divide the height and width of the image; "
                f"got {height} x {width}. Choose a common divisor of both."
            )
        return (height // self.side) * (width // self.side), channels * self.side**2

    def tokens(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length channels"]:
        """Maps (batch, C, H, W) to (batch, (H/p)(W/p), C p p); see `Tokenizer.tokens`."""
        self.size(tuple(x.shape[1:]))
        p = self.side
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def inverse(
        self, tokens: Float[Tensor, "batch length channels"], shape: Shape
    ) -> Float[Tensor, "batch ..."]:
        """Maps (batch, (H/p)(W/p), C p p) to (batch, C, H, W); see `Tokenizer.inverse`."""
        self._check(tokens, shape)
        p = self.side
        rows = shape[1] // p
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=p)


@register("legacy_raster")
@settings
class LegacyRaster(Tokenizer):
    """The released code's `x.view(batch, H * W, C)`, which scrambles colour images.

    Token t of an image with C > 1 channels holds the values C t, ..., C t + C - 1 of the
    channel-first image laid out flat: neighbouring pixels of one colour plane, the red plane first,
    and not the C colours of one pixel. With one channel it is `Raster`. It exists to reproduce
    published runs; use `Raster` for anything else.

    Source: qi2024exploring, released code (`models/SSM.py`).
    """

    def size(self, shape: Shape) -> tuple[int, int]:
        """(H W, C) of an image (C, H, W); (L, C) of a sequence (L, C)."""
        return _pixels(self, shape)

    def tokens(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length channels"]:
        """Reads (batch, C, H, W) as (batch, H W, C); see `Tokenizer.tokens`."""
        length, channels = self.size(tuple(x.shape[1:]))
        return x.reshape(len(x), length, channels)

    def inverse(
        self, tokens: Float[Tensor, "batch length channels"], shape: Shape
    ) -> Float[Tensor, "batch ..."]:
        """Reads (batch, H W, C) as (batch, C, H, W); see `Tokenizer.inverse`."""
        self._check(tokens, shape)
        return tokens.reshape(len(tokens), *shape)


def _pixels(tokenizer: Tokenizer, shape: Shape) -> tuple[int, int]:
    if len(shape) == 3:
        channels, height, width = shape
        return height * width, channels
    if len(shape) == 2:
        return shape[0], shape[1]
    raise _refusal(tokenizer, shape, "(channels, height, width) or (length, channels)")


def _refusal(tokenizer: Tokenizer, shape: Shape, expected: str) -> ValueError:
    subject = f"An input of `{type(tokenizer).__name__}`"
    return ValueError(
        violation(subject, f"have the shape {expected}", shape, "Reshape it beforehand.")
    )
