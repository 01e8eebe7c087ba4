"""A small convolutional network, the baseline that sees an image as an image."""

import itertools
from typing import Annotated

import pydantic
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise, global_stream
from robustssm.models.block import linear
from robustssm.models.classifier import ModelConfig
from robustssm.models.tokens import Shape


@register("cnn")
@settings
class CNNConfig(ModelConfig):
    """Settings of a `CNN`: 3x3 convolutions, all but the first halve the image.

    Source: lecun1998gradient, section II, with ReLU, strides for its subsampling, and a mean.
    """

    width: Annotated[int, pydantic.Field(ge=1)] = 16
    """Channels of the first convolution; every other one doubles them."""
    num_layers: Annotated[int, pydantic.Field(ge=1)] = 3
    """Number of convolutions."""

    def build(self, *, shape: Shape, num_classes: int, noise: Noise) -> "CNN":
        """Makes the classifier in float32 on the CPU; arguments as `ModelConfig.build`.

        Raises:
            ValueError: If examples are no images, or there are less than 2 classes.
        """
        return CNN(self, shape=shape, num_classes=num_classes, noise=noise)


class CNN(nn.Module):
    """Images (batch, channels, height, width) to logits; `forward(x)` is `classify(embed(x))`.

    `embed` is the first convolution, whose pixels are the tokens: (batch, height width, channels).
    """

    def __init__(self, config: CNNConfig, *, shape: Shape, num_classes: int, noise: Noise):
        """Made by `CNNConfig.build`."""
        super().__init__()
        if len(shape) != 3:
            raise ValueError(
                violation(
                    "`CNN(shape=...)`",
                    "be that of an image, (channels, height, width)",
                    tuple(shape),
                    "Use a `sequence_classifier` or a `transformer` for sequences.",
                )
            )
        if num_classes < 2:
            raise ValueError(violation("`CNN(num_classes=...)`", "be at least 2", num_classes))
        self.config, self.shape, self.num_classes = config, tuple(shape), num_classes
        widths = [config.width * 2**layer for layer in range(config.num_layers)]
        with global_stream(noise.fork("convolutions")):
            self.input = nn.Conv2d(shape[0], widths[0], 3, padding=1)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
                for narrow, wide in itertools.pairwise(widths)
            )
        self.head = linear(widths[-1], num_classes, noise=noise.fork("head"))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Maps images to unnormalised scores (batch, num_classes).

        Raises:
            ValueError: If `x` has another shape.
        """
        return self.classify(self.embed(x))

    def embed(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length d_model"]:
        """The first convolution, pixel by pixel, row by row; affine in `x`.

        Raises:
            ValueError: If `x` has another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"This classifier takes inputs of shape (batch, {', '.join(map(str, self.shape))})"
                f"; got {tuple(x.shape)}. Give it batches of the data set that it was built for."
            )
        return rearrange(self.input(x), "b c h w -> b (h w) c")

    def classify(
        self, tokens: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch classes"]:
        """Maps what `embed` gives to logits (batch, num_classes)."""
        h = rearrange(tokens, "b (h w) c -> b c h w", h=self.shape[1]).relu()
        for convolution in self.convolutions:
            h = convolution(h).relu()
        return self.head(h.mean((2, 3)))

    def parameter_count(self) -> int:
        """Trainable real numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
