"""What stands around a sequence layer: norm, residual, activation, mixing, feed-forward.

The paper's table 3 (qi2024exploring), its released code and modern pre-norm blocks are values of
one `BlockConfig`:

    table 3   norm="post", activation="gelu", mixing="linear", mixing_activation="gelu"
    released  norm="post", activation="none", mixing="linear"
    modern    norm="pre",  activation="gelu", mixing="linear" or "glu"
    Mega      norm="none", residual=False, activation="none", mixing="none"   (it brings its own)
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import settings
from robustssm.core.observation import Part, observe, observed
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.base import LayerConfig
from robustssm.layers.layer_norm import LayerNorm
from robustssm.layers.linear import Linear
from robustssm.layers.preparation import Preparing
from robustssm.models.fusion import Branch, fused_branch, make_branch
from robustssm.ops.residual_block import residual_block

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


@settings
class BlockConfig:
    """Settings of a block; where nothing is chosen the part is left out."""

    norm: Literal["pre", "post", "none"] = "pre"
    """LayerNorm of what a branch reads ("pre"), of its sum with the residual ("post"), or none."""
    residual: bool = True
    activation: Literal["none", "gelu", "relu", "silu"] = "gelu"
    """What follows the layer, elementwise."""
    mixing: Literal["none", "linear", "glu"] = "linear"
    """The map across channels after that: Linear(d, d), or Linear(d, 2 d) and a gated unit."""
    mixing_activation: Literal["none", "gelu"] = "none"
    feed_forward: Annotated[int, pydantic.Field(ge=0)] = 0
    """Hidden width of a second branch Linear, GELU, Linear with its own norm; 0 leaves it out."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Probability of zeroing an entry of a branch's output in train mode.

    It draws from torch's global generator; a training loop that must be repeatable seeds that one.
    """

    def __post_init__(self) -> None:
        if self.mixing_activation != "none" and self.mixing == "none":
            raise ValueError(
                "`BlockConfig(mixing_activation=...)` must follow a mixing; got "
                f"mixing_activation='{self.mixing_activation}' with mixing='none'. Choose a "
                "mixing, or put the activation after the layer (activation=...)."
            )

    def build(self, layer: LayerConfig, *, d_model: int, length: int, noise: Noise) -> "Block":
        """Makes the block around a new layer, in float32 on the CPU.

        Args:
            layer: The layer to build.
            d_model: Channels of the sequences it maps, at least 1.
            length: Longest sequence it must accept.
            noise: Source of every initial draw; layer, mixing and feed-forward have a fork each.
        """
        return Block(self, layer, d_model=d_model, length=length, noise=noise)


class Block(Preparing):
    """h -> h + f(norm(h)) ("pre") or norm(h + f(h)) ("post"), f = mixing(activation(layer(.))).

    Submodules, as probes name them: `layer`, `activation`, `mixing`, `mixing_activation`,
    `dropout`, `norm`, and with a feed-forward branch `feed_forward` and `feed_forward_norm`. A part
    that is left out is an `nn.Identity` (`feed_forward`: None).

    Inside `frozen()`, around a convolutional layer and on a CPU, the branch of the layer runs as
    one compiled operation; submodules are then not called, so where one has a hook it does not.
    """

    def __init__(
        self, config: BlockConfig, layer: LayerConfig, *, d_model: int, length: int, noise: Noise
    ):
        """Made by `BlockConfig.build`."""
        super().__init__()
        self.config = config
        self.layer = layer.build(d_model=d_model, length=length, noise=noise.fork("layer"))
        self.activation = _ACTIVATIONS[config.activation]()
        self.mixing = _mixing(config.mixing, d_model, noise.fork("mixing"))
        self.mixing_activation = _ACTIVATIONS[config.mixing_activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.norm = _norm(config.norm, d_model)
        self.feed_forward = None
        if config.feed_forward:
            self.feed_forward = _feed_forward(
                d_model, config.feed_forward, noise.fork("feed_forward")
            )
            self.feed_forward_norm = _norm(config.norm, d_model)

    def forward(
        self, h: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        whole = fused_branch(self, h) if self._is_frozen and not observed() else None
        if whole is not None:
            h = residual_block(h, whole)
        else:
            h = self._around(h, self._mixed, self.norm)
        if self.feed_forward is not None:
            h = self._around(h, self._fed_forward, self.feed_forward_norm)
        return h

    def prepared(self, length: int) -> Branch | None:
        """The branch of the layer as one operation; None if it is none. Made once while frozen."""
        return self._prepared(length, lambda: make_branch(self, length))

    def _sources(self) -> list[Mapping[str, Tensor | None]]:
        return [tensors for part in self.modules() for tensors in (part._parameters, part._buffers)]

    def _mixed(self, h: Tensor) -> Tensor:
        h = self._seen("layer", h, self.layer)
        h = self._seen("activation", h, self.activation)
        h = self._seen("linear", h, self.mixing)
        return self._seen("activation", h, self.mixing_activation)

    def _fed_forward(self, h: Tensor) -> Tensor:
        assert self.feed_forward is not None
        return self._seen("feed_forward", h, self.feed_forward)

    def _seen(self, part: Part, h: Tensor, module: nn.Module) -> Tensor:
        """Runs a part and reports it, unless it is left out."""
        if isinstance(module, nn.Identity):
            return h
        return observe(self, part, h, module(h))

    def _around(self, h: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        pre = self.config.norm == "pre"
        y = self.dropout(branch(self._seen("norm", h, norm) if pre else h))
        if self.config.residual:
            y = observe(self, "residual", h, h + y)
        return y if pre else self._seen("norm", y, norm)


def linear(inputs: int, outputs: int, *, noise: Noise) -> Linear:
    """A linear map with nn.Linear's default initialisation, drawn from `noise`."""
    with global_stream(noise):
        return Linear(inputs, outputs)


def _mixing(kind: str, d_model: int, noise: Noise) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return linear(d_model, d_model, noise=noise)
    gated = linear(d_model, 2 * d_model, noise=noise)
    return nn.Sequential(OrderedDict(linear=gated, gate=nn.GLU(-1)))


def _feed_forward(d_model: int, hidden: int, noise: Noise) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            expand=linear(d_model, hidden, noise=noise.fork("expand")),
            activation=nn.GELU(),
            contract=linear(hidden, d_model, noise=noise.fork("contract")),
        )
    )


def _norm(kind: str, d_model: int) -> nn.Module:
    return nn.Identity() if kind == "none" else LayerNorm(d_model)
