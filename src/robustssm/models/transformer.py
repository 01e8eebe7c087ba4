"""A small Transformer, the baseline without any state: pre-norm attention and feed-forward."""

from typing import Annotated

import pydantic

from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.layers.attention import AttentionConfig
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import ModelConfig, SequenceClassifier, SequenceClassifierConfig
from robustssm.models.tokens import Raster, Shape, Tokenizer


@register("transformer")
@settings
class TransformerConfig(ModelConfig):
    """Settings of an encoder of attention blocks, told by sines where a token is; mean pooling.

    Source: vaswani2017attention, with the norms before each branch and after the last block.
    """

    d_model: Annotated[int, pydantic.Field(ge=2, multiple_of=2)] = 64
    num_layers: Annotated[int, pydantic.Field(ge=1)] = 2
    heads: Annotated[int, pydantic.Field(ge=1)] = 4
    d_ffn: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Hidden width of the feed-forward part; None is 2 d_model."""
    tokens: Tokenizer = Raster()

    def build(self, *, shape: Shape, num_classes: int, noise: Noise) -> SequenceClassifier:
        """Makes the classifier in float32 on the CPU; arguments as `ModelConfig.build`.

        Raises:
            ValueError: If `heads` does not divide `d_model`, tokens do not fit the shape, or there
                are less than 2 classes.
        """
        body = SequenceClassifierConfig(
            layer=AttentionConfig(heads=self.heads, relative_bias=False),
            d_model=self.d_model,
            num_layers=self.num_layers,
            tokens=self.tokens,
            positions="sines",
            block=BlockConfig(
                norm="pre",
                activation="none",
                mixing="none",
                feed_forward=self.d_ffn or 2 * self.d_model,
            ),
        )
        return body.build(shape=shape, num_classes=num_classes, noise=noise)
