"""Mega (ma2023mega): a moving average of every channel, then gated attention, then feed-forward."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.observation import observe, observed
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.attention import RelativeBias, future
from robustssm.layers.base import CausalLayer, LayerConfig, Role, SequenceLayer
from robustssm.layers.layer_norm import LayerNorm
from robustssm.layers.linear import Linear
from robustssm.layers.moving_average import MovingAverage
from robustssm.ops import recurrence as recurrences
from robustssm.ops.attention import softmax_attention, softmax_attention_reference
from robustssm.ops.mega_gates import gates, reset, silu, update
from robustssm.ops.recurrence import Recurrence

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, (batch, 1, length, width), to what is read."""


@register("mega")
@settings
class MegaConfig(LayerConfig):
    """Settings of a whole Mega layer, with its own residuals and norms: put no others around it.

    qi2024exploring has d_model 128 with the defaults on CIFAR-10 and d_hidden and d_ffn 32 on
    MNIST.

    Source: ma2023mega, section 3, and its released code.
    """

    d_state: Annotated[int, Field(ge=1)] = 16
    """Averages per channel and direction."""
    d_attention: Annotated[int, Field(ge=1)] | None = None
    """Width of queries and keys; None is d_model / 2, rounded up."""
    d_hidden: Annotated[int, Field(ge=1)] | None = None
    """Width of values and of the gate upon them; None is 2 d_model."""
    d_ffn: Annotated[int, Field(ge=1)] | None = None
    """Hidden width of the feed-forward part; None is 2 d_model."""
    bidirectional: bool = True
    """Both the average and the attention see all tokens; False: only the tokens so far."""
    scaling: AdaptiveScalingConfig | None = None
    """Adaptive scaling of the moving average."""

    def build(self, *, d_model: int, length: int, noise: Noise) -> SequenceLayer:
        """Makes the layer in float32 on the CPU, with relative positions up to `length`."""
        made = Mega if self.bidirectional else CausalMega
        return made(self, d_model=d_model, length=length, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Both ways, causal, and with adaptive scaling."""
        return (
            cls(),
            cls(bidirectional=False, d_state=3),
            cls(d_attention=3, d_hidden=5, d_ffn=4, scaling=AdaptiveScalingConfig()),
        )


class _MegaLayer(SequenceLayer):
    """m = silu(average of x + w x), v = silu(W_v x), (u, z, r, h_x) = W_m m with u = sigmoid(u),
    z, r = silu(z), silu(r), q and k = z * gain + offset, each with its own,
    h = silu(h_x + W_h (attention(q, k, v) * r)), x <- norm(x + u (h - x)), and
    x <- norm(x + W_2 silu(W_1 x)).
    """

    def __init__(self, config: MegaConfig, *, d_model: int, length: int, noise: Noise):
        """Made by `MegaConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        d_attention = config.d_attention or math.ceil(d_model / 2)
        hidden, ffn = config.d_hidden or 2 * d_model, config.d_ffn or 2 * d_model
        self.widths = [d_model, d_attention, hidden, d_model]
        self.average = MovingAverage(
            d_model=d_model,
            d_state=config.d_state,
            directions=2 if config.bidirectional else 1,
            noise=noise.fork("average"),
        )
        self.scaling = (
            config.scaling.build(d_model=d_model, noise=noise.fork("scaling"))
            if config.scaling
            else None
        )
        self.value = _linear(d_model, hidden, noise.fork("value"))
        self.mixed = _linear(d_model, sum(self.widths), noise.fork("mixed"))
        self.hidden = _linear(hidden, d_model, noise.fork("hidden"))
        self.qk_gain = nn.Parameter(noise.fork("qk").normal(2, d_attention, std=0.02))
        self.qk_offset = nn.Parameter(torch.zeros(2, d_attention))
        self.bias = RelativeBias(heads=1, length=length, noise=noise.fork("bias"))
        self.norm = LayerNorm(d_model)
        self.expand = _linear(d_model, ffn, noise.fork("expand"))
        self.contract = _linear(ffn, d_model, noise.fork("contract"))
        self.ffn_norm = LayerNorm(d_model)

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape.

        Raises:
            ValueError: If the sequence is longer than the layer was built for.
        """
        bias = self.bias(x.shape[1])
        if not self.config.bidirectional:
            bias = bias + future(x.shape[1], bias)
        return self._gated(x, self.average(x), lambda q, k, v: softmax_attention(q, k, v, bias))

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """The moving average with its skip."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        first, *rest = self.average.systems(dtype)
        return replace(first, backward=rest[0] if rest else None)

    def roles(self) -> Mapping[str, Role]:
        """The average's delta, alpha and beta are dynamics, its skip and the bias gains."""
        dynamics = ("average.delta", "average.alpha", "average.beta")
        norms = (f"{norm}.{name}" for norm in ("norm", "ffn_norm") for name in ("weight", "bias"))
        return {
            **dict.fromkeys(dynamics, "dynamics"),
            **dict.fromkeys(("average.omega", "bias.table"), "gain"),
            **dict.fromkeys(norms, "norm"),
        }

    def _gated(self, x: Tensor, average: Tensor, attention: Attend) -> Tensor:
        """All that follows the average; `attention` maps q, k and v to what is read."""
        v = silu(self.value(x))
        observe(self, "ssm", x, average)
        scaled = average
        if self.scaling is not None:
            scaled = observe(self, "ads", average, self.scaling(average))
        made = gates(self.mixed(silu(scaled)), self.qk_gain, self.qk_offset, self.widths)
        read = attention(made.q[:, None], made.k[:, None], v[:, None]).squeeze(1)
        observe(self, "attention", v, read)
        read = observe(self, "gate", read, reset(read, made))
        hidden = observe(self, "linear", read, self.hidden(read))
        if observed():  # then there must be h
            h = F.silu(made.h_x + hidden)
            updated = observe(self, "gate", h, x + torch.sigmoid(made.u) * (h - x))
        else:
            updated = update(x, hidden, made)
        x = observe(self, "norm", updated, self.norm(updated))
        wide = observe(self, "linear", x, self.expand(x))
        wide = observe(self, "activation", wide, silu(wide))
        y = x + observe(self, "linear", wide, self.contract(wide))
        observe(self, "residual", x, y)
        return observe(self, "norm", y, self.ffn_norm(y))


class Mega(_MegaLayer):
    """Mega with averages in both directions and attention to all tokens.

    Source: ma2023mega, section 3; figure 2.
    """

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """The average as a recurrence, and attention one query at a time."""
        bias = self.bias(x.shape[1])
        return self._gated(
            x,
            recurrences.run(self.recurrence(x), x),
            lambda q, k, v: softmax_attention_reference(q, k, v, bias),
        )


class MegaState(NamedTuple):
    """The averages, the system they follow, and all keys and values so far."""

    h: Float[Tensor, "batch d_model d_state"]
    system: Recurrence
    keys: Float[Tensor, "batch 1 time d_attention"]
    values: Float[Tensor, "batch 1 time d_hidden"]


class CausalMega(_MegaLayer, CausalLayer):
    """Mega as a decoder: forward averages, and attention to the tokens so far.

    Source: ma2023mega, section 3.
    """

    def initial_state(self, batch_size: int) -> MegaState:
        """Averages of zero, no keys and no values."""
        dtype = torch.promote_types(self.average.omega.dtype, torch.float32)
        system = self.average.systems(dtype)[0]
        token = self.qk_offset.new_zeros(batch_size, self.d_model)
        _, d_attention, hidden, _ = self.widths
        return MegaState(
            recurrences.initial_state(system, token),
            system,
            token.new_zeros(batch_size, 1, 0, d_attention),
            token.new_zeros(batch_size, 1, 0, hidden),
        )

    def step(
        self, x: Float[Tensor, "batch d_model"], state: MegaState
    ) -> tuple[Float[Tensor, "batch d_model"], MegaState]:
        """One time step.

        Raises:
            ValueError: If there were as many steps as the layer was built for.
        """
        average, h = recurrences.step(state.system, state.h, x)
        seen = {}

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen["keys"] = torch.cat([state.keys, k], 2)
            seen["values"] = torch.cat([state.values, v], 2)
            bias = self.bias(seen["keys"].shape[2])[:, -1:]
            return softmax_attention(q, seen["keys"], seen["values"], bias)

        y = self._gated(x[:, None], average[:, None], attention)
        return y[:, 0], MegaState(h, state.system, **seen)


def _linear(inputs: int, outputs: int, noise: Noise) -> Linear:
    """Weights from N(0, 0.02), biases of zero."""
    with global_stream(noise):  # the default draws are overwritten, but must not touch the outside
        made = Linear(inputs, outputs)
    with torch.no_grad():
        made.weight.copy_(noise.normal(outputs, inputs, std=0.02))
        made.bias.zero_()
    return made
