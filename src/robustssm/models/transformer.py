"""A small Transformer, the baseline without any state: pre-norm attention and feed-forward."""

import math
from typing import Annotated

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.layers.attention import AttentionConfig
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import ModelConfig, SequenceClassifier, SequenceClassifierConfig
from robustssm.models.tokens import Raster, Shape, Tokenizer


@register("transformer")
@settings
class TransformerConfig(ModelConfig):
    """Settings of a `Transformer`: an encoder whose head reads the mean over tokens.

    Source: vaswani2017attention, with the norms before each branch and after the last block.
    """

    d_model: Annotated[int, pydantic.Field(ge=2, multiple_of=2)] = 64
    num_layers: Annotated[int, pydantic.Field(ge=1)] = 2
    heads: Annotated[int, pydantic.Field(ge=1)] = 4
    d_ffn: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Hidden width of the feed-forward part; None is 2 d_model."""
    tokens: Tokenizer = Raster()

    def build(self, *, shape: Shape, num_classes: int, noise: Noise) -> "Transformer":
        """Makes the classifier in float32 on the CPU; arguments as `ModelConfig.build`.

        Raises:
            ValueError: If `heads` does not divide `d_model`, tokens do not fit the shape, or there
                are less than 2 classes.
        """
        return Transformer(self, shape=shape, num_classes=num_classes, noise=noise)


class Transformer(SequenceClassifier):
    """A `SequenceClassifier` of attention blocks; `embed` adds sines that tell where a token is."""

    positions: Tensor

    def __init__(self, config: TransformerConfig, *, shape: Shape, num_classes: int, noise: Noise):
        """Made by `TransformerConfig.build`."""
        body = SequenceClassifierConfig(
            layer=AttentionConfig(heads=config.heads, relative_bias=False),
            d_model=config.d_model,
            num_layers=config.num_layers,
            tokens=config.tokens,
            block=BlockConfig(
                norm="pre",
                activation="none",
                mixing="none",
                feed_forward=config.d_ffn or 2 * config.d_model,
            ),
        )
        super().__init__(body, shape=shape, num_classes=num_classes, noise=noise)
        table = sines(config.tokens.length(shape), config.d_model)
        self.register_buffer("positions", table.float(), persistent=False)

    def embed(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length d_model"]:
        """Maps tokens to (batch, length, d_model) and adds the sines; affine in `x`.

        Raises:
            ValueError: If `x` has another shape, or is not floating-point.
        """
        return super().embed(x) + self.positions


def sines(length: int, d_model: int) -> Float[Tensor, "length d_model"]:
    """P[t, 2i] = sin(t / 10000^(2i / d_model)), P[t, 2i + 1] = cos of the same; in float64.

    Args:
        length: Number of positions.
        d_model: Channels, an even number.

    Source: vaswani2017attention, section 3.5.
    """
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    rates = torch.exp(-math.log(10_000) * even / d_model)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
