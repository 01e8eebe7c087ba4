"""Softmax attention: the core of Mega (ma2023mega), and a control without any state."""

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.observation import observe, observed
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.base import CausalLayer, LayerConfig, Role, SequenceLayer
from robustssm.layers.linear import Linear
from robustssm.layers.preparation import Preparing
from robustssm.ops.attention import softmax_attention, softmax_attention_reference


@register("attention")
@settings
class AttentionConfig(LayerConfig):
    """Settings of softmax attention: the bare map, without norm, residual or feed-forward part.

    Source: ma2023mega, section 2.1, after Vaswani et al. (2017), whose heads it shares; the
        relative bias is that of ma2023mega.
    """

    heads: Annotated[int, Field(ge=1)] = 1
    causal: bool = False
    """Every token attends to itself and the tokens before it only."""
    relative_bias: bool = True
    """A learnt bias for every offset between tokens; without it order goes unseen."""

    def build(self, *, d_model: int, length: int, noise: Noise) -> SequenceLayer:
        """Makes the layer in float32 on the CPU.

        Raises:
            ValueError: If `heads` does not divide `d_model`.
        """
        if d_model % self.heads:
            raise ValueError(
                violation(
                    "`AttentionConfig(heads=...)`",
                    "divide d_model, as heads share the channels equally",
                    f"heads={self.heads} for d_model={d_model}",
                    f"Try heads={math.gcd(self.heads, d_model)}.",
                )
            )
        made = CausalAttention if self.causal else Attention
        return made(self, d_model=d_model, length=length, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """One head and two, both ways and causal, with and without positions."""
        return (cls(), cls(heads=2, causal=True), cls(heads=2, relative_bias=False))


class RelativeBias(Preparing):
    """One learnt number per head and offset between key and query, from 1 - length to length - 1.

    Source: ma2023mega's released code, `SimpleRelativePositionalBias`.
    """

    def __init__(self, *, heads: int, length: int, noise: Noise):
        """Draws the table from N(0, 0.02).

        Args:
            heads: Number of tables.
            length: Longest sequence.
            noise: Source of the initial draws.
        """
        super().__init__()
        self.length = length
        self.table = nn.Parameter(noise.normal(heads, 2 * length - 1, std=0.02))

    def forward(self, length: int) -> Float[Tensor, "heads queries keys"]:
        """bias[h, t, s] = table[h, s - t + self.length - 1].

        Raises:
            ValueError: If the sequence is longer than the table reaches.
        """
        if length > self.length:
            raise ValueError(
                f"Relative positions reach over {self.length} tokens; got a sequence of {length}. "
                f"Build the layer with length={length} or more, or cut the sequence."
            )
        return self._prepared((length, self.table.device), lambda: self._matrix(length))

    def _matrix(self, length: int) -> Tensor:
        # Row t is the stretch of the table that begins at offset -t: rising t, falling start.
        near = self.table[:, self.length - length : self.length + length - 1]
        return near.unfold(1, length, 1).flip(1)


def future(length: int, like: Tensor) -> Float[Tensor, "queries keys"]:
    """A bias of -inf where the key comes after the query, else 0."""
    forbidden = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    return forbidden.triu(1)


class _AttentionLayer(SequenceLayer):
    """y = W_o concat over heads of softmax(q k^T / sqrt(d_head) + bias) v."""

    def __init__(self, config: AttentionConfig, *, d_model: int, length: int, noise: Noise):
        """Made by `AttentionConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        with global_stream(noise.fork("linear")):
            self.qkv = Linear(d_model, 3 * d_model)
            self.out = Linear(d_model, d_model)
        self.bias = None
        if config.relative_bias:
            self.bias = RelativeBias(heads=config.heads, length=length, noise=noise.fork("bias"))

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape.

        Raises:
            ValueError: If the sequence is longer than the layer was built for.
        """
        q, k, v = self._qkv(x)
        read = softmax_attention(q, k, v, self._bias(x.shape[1], x))
        y = self._out(read)
        if observed():
            told = _side_by_side(read)
            observe(self, "attention", _side_by_side(v), told)
            observe(self, "linear", told, y)
        return y

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> None:
        """None: there is no state equation inside."""
        del x

    def roles(self) -> Mapping[str, Role]:
        """The bias is a gain."""
        return {} if self.bias is None else {"bias.table": "gain"}

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, length, features)."""
        pattern = "b l (p h c) -> p b h l c"
        q, k, v = rearrange(self.qkv(x), pattern, p=3, h=self.config.heads)
        return q, k, v

    def _out(self, y: Tensor) -> Tensor:
        return self.out(_side_by_side(y))

    def _bias(self, length: int, like: Tensor) -> Tensor | None:
        """(heads or 1, length, length), or None."""
        bias = None if self.bias is None else self.bias(length)
        if not self.config.causal:
            return bias
        mask = future(length, like)[None]
        return mask if bias is None else bias + mask


def _side_by_side(heads: Tensor) -> Float[Tensor, "batch length features"]:
    return rearrange(heads, "b h l c -> b l (h c)")


class Attention(_AttentionLayer):
    """Attention to all tokens.

    Source: ma2023mega, section 2.1.
    """

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """One query at a time."""
        q, k, v = self._qkv(x)
        bias = None if self.bias is None else self.bias(x.shape[1])
        return self._out(softmax_attention_reference(q, k, v, bias))


class AttentionState(NamedTuple):
    """All keys and values so far."""

    keys: Float[Tensor, "batch heads time features"]
    values: Float[Tensor, "batch heads time features"]


class CausalAttention(_AttentionLayer, CausalLayer):
    """Attention to the tokens so far.

    Source: ma2023mega, section 2.1.
    """

    def initial_state(self, batch_size: int) -> AttentionState:
        """No keys and no values."""
        heads = self.config.heads
        empty = self.out.weight.new_zeros(batch_size, heads, 0, self.d_model // heads)
        return AttentionState(empty, empty)

    def step(
        self, x: Float[Tensor, "batch d_model"], state: AttentionState
    ) -> tuple[Float[Tensor, "batch d_model"], AttentionState]:
        """One time step."""
        q, k, v = self._qkv(x[:, None])
        state = AttentionState(torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2))
        bias = None if self.bias is None else self.bias(state.keys.shape[2])[:, -1:]
        return self._out(softmax_attention(q, *state, bias))[:, 0], state
