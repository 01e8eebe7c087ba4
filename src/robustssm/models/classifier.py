"""The classifier of every study: normalise, tokens, input map, blocks, pooling, head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import Named, register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.layers.base import LayerConfig, Role, SequenceLayer
from robustssm.layers.layer_norm import LayerNorm
from robustssm.models.block import BlockConfig, linear
from robustssm.models.positions import sines
from robustssm.models.tokens import Raster, Shape, Tokenizer


class ModelConfig(Named, ABC):
    """Settings of a model: frozen, JSON-able, and all a recipe needs in order to name it."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def build(self, *, shape: Shape, num_classes: int, noise: Noise) -> nn.Module:
        """Makes the model in float32 on the CPU.

        Args:
            shape: Shape of one example: (channels, height, width) or (length, channels).
            num_classes: Width of the logits, at least 2.
            noise: Source of every initial draw.
        """


@settings
class Normalize:
    """Settings of (x - mean) / std, channel by channel; one value stands for all channels."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, pydantic.Field(gt=0)], ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                "`Normalize(mean=..., std=...)` must have one entry of each per channel; got "
                f"{len(self.mean)} and {len(self.std)}. Give both the same length."
            )


@register("sequence_classifier")
@settings
class SequenceClassifierConfig(ModelConfig):
    """Settings of a `SequenceClassifier`: `num_layers` equal blocks between input map and head.

    Source: qi2024exploring, table 3 and its released code; `models.presets` holds these as values.
    """

    layer: LayerConfig
    d_model: Annotated[int, pydantic.Field(ge=1)] = 128
    num_layers: Annotated[int, pydantic.Field(ge=1)] = 4
    tokens: Tokenizer = Raster()
    block: BlockConfig = BlockConfig()
    input_norm: bool = False
    """LayerNorm between the input map and the first block."""
    final_norm: bool = True
    """LayerNorm after the last block, before pooling."""
    pooling: Literal["mean", "last"] = "mean"
    """What the head reads: the mean over tokens, or the last token."""
    positions: Literal["sines"] | None = None
    """What is added to the embedded tokens, for layers that do not see where a token is."""
    normalize: Normalize | None = None
    """First act of the classifier; None: none. Threats stay in the inputs' own unit either way."""

    def build(self, *, shape: Shape, num_classes: int, noise: Noise) -> "SequenceClassifier":
        """Makes the classifier in float32 on the CPU; arguments as `ModelConfig.build`.

        Raises:
            ValueError: If tokens or normalisation do not fit the shape, or below 2 classes.
        """
        return SequenceClassifier(self, shape=shape, num_classes=num_classes, noise=noise)


class SequenceClassifier(nn.Module):
    """Inputs (batch, *shape) to logits (batch, num_classes); `forward(x)` is `classify(embed(x))`.

    Submodules, as probes name them: `input`, `input_norm`, `blocks.<i>.<part>` (see `Block`),
    `final_norm`, `head`. A norm that is left out is an `nn.Identity`.
    """

    mean: Tensor | None
    std: Tensor | None
    positions: Tensor | None

    def __init__(
        self, config: SequenceClassifierConfig, *, shape: Shape, num_classes: int, noise: Noise
    ):
        """Made by `SequenceClassifierConfig.build`."""
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                violation("`SequenceClassifier(num_classes=...)`", "be at least 2", num_classes)
            )
        length, channels = config.tokens.size(shape)
        d_model = config.d_model
        self.config, self.shape, self.num_classes = config, tuple(shape), num_classes
        mean, std = _statistics(config.normalize, self.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        table = _positions(config, length)
        self.register_buffer("positions", table, persistent=False)
        self.input = linear(channels, d_model, noise=noise.fork("input"))
        self.input_norm = LayerNorm(d_model) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            config.block.build(
                config.layer, d_model=d_model, length=length, noise=noise.fork("block", index)
            )
            for index in range(config.num_layers)
        )
        self.final_norm = LayerNorm(d_model) if config.final_norm else nn.Identity()
        self.head = linear(d_model, num_classes, noise=noise.fork("head"))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Maps inputs (batch, *shape) to unnormalised scores (batch, num_classes).

        Raises:
            ValueError: If `x` has another shape, or is not floating-point.
        """
        return self.classify(self.embed(x))

    def embed(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch length d_model"]:
        """Normalises, cuts into tokens, maps these to (batch, length, d_model); affine in `x`.

        Raises:
            ValueError: If `x` has another shape, or is not floating-point.
        """
        if tuple(x.shape[1:]) != self.shape:
            expected = ", ".join(str(n) for n in self.shape)
            raise ValueError(
                f"This classifier takes inputs of shape (batch, {expected}); got {tuple(x.shape)}. "
                "Give it batches of the data set that it was built for."
            )
        if not x.is_floating_point():
            raise ValueError(
                f"This classifier takes floating-point inputs; got {x.dtype}. Bring them to the "
                "bounds of the data set first (images: x.float() / 255)."
            )
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        tokens = self.input(self.config.tokens.tokens(x))
        return tokens if self.positions is None else tokens + self.positions

    def classify(
        self, tokens: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch classes"]:
        """Maps embedded tokens (batch, length, d_model) to logits (batch, num_classes)."""
        h = self.input_norm(tokens)
        for block in self.blocks:
            h = block(h)
        h = self.final_norm(h)
        return self.head(_mean(h) if self.config.pooling == "mean" else h[:, -1])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A context for attacks: while it lasts, parameters must not change and get no gradient.

        Every layer that can (`core.types.Freezable`) makes what depends on parameters alone once.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        with ExitStack() as stack:
            for module in self.modules():
                # By name: checks of protocols take longer than all of these contexts.
                if module is not self and hasattr(type(module), "frozen"):
                    stack.enter_context(module.frozen())  # pyright: ignore[reportCallIssue]
            for parameter in trainable:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in trainable:
                    parameter.requires_grad_(True)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A context for losses of several forward passes that are differentiated once.

        While it lasts, every layer makes what depends on parameters alone once, with its graph.
        """
        with ExitStack() as stack:
            for module in self.modules():
                if module is not self and hasattr(type(module), "shared"):
                    stack.enter_context(module.shared())  # pyright: ignore[reportCallIssue]
            yield

    def parameter_count(self) -> int:
        """Trainable real numbers; a complex one counts twice."""
        trainable = (p for p in self.parameters() if p.requires_grad)
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in trainable)

    def roles(self) -> Mapping[str, Role]:
        """Parameter name to role, for optimiser settings; names left out are "weight"."""
        found: dict[str, Role] = {}
        for prefix, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                found |= {f"{prefix}.{name}": "norm" for name, _ in module.named_parameters()}
            elif isinstance(module, SequenceLayer):
                found |= {f"{prefix}.{name}": role for name, role in module.roles().items()}
        return found


def _mean(h: Tensor) -> Tensor:
    """The mean over tokens, whose gradient is one row for all of them instead of a copy for each.

    In half precision, where a sum might overflow, torch's own.
    """
    return h.sum(1) / h.shape[1] if torch.finfo(h.dtype).bits >= 32 else h.mean(1)


def _positions(config: SequenceClassifierConfig, length: int) -> Tensor | None:
    if config.positions is None:
        return None
    if config.d_model % 2:
        raise ValueError(
            violation(
                "`SequenceClassifier(positions='sines')`",
                "have an even d_model, as sines come with cosines",
                config.d_model,
            )
        )
    return sines(length, config.d_model).float()


def _statistics(normalize: Normalize | None, shape: Shape) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation, shaped so that they broadcast over an example."""
    if normalize is None:
        return None, None
    channels = shape[0] if len(shape) == 3 else shape[-1]
    if len(normalize.mean) not in (1, channels):
        raise ValueError(
            f"`Normalize(mean=..., std=...)` must have 1 entry or {channels}, one per channel of "
            f"inputs of shape {shape}; got {len(normalize.mean)}."
        )
    axes = (-1, 1, 1) if len(shape) == 3 else (-1,)
    mean, std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
    return mean.float().reshape(axes), std.float().reshape(axes)
