"""Softmax attention in compiled code: csrc/attention.h."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels import native

_PARTS = 8  # of the batch, each with a bias gradient of its own: work for so many threads

_attention = native.function("attention", "p" * 5 + "i" * 7)
_attention_gradients = native.function("attention_gradients", "p" * 9 + "i" * 8)


def attention(
    q: Float[Tensor, "batch heads queries features"],
    k: Float[Tensor, "batch heads keys features"],
    v: Float[Tensor, "batch heads keys values"],
    bias: Float[Tensor, "#heads queries keys"] | None,
) -> Float[Tensor, "batch heads queries values"]:
    """softmax(q k^T + bias) v."""
    q, k, v = (_time_first(x) for x in (q, k, v))
    bias = None if bias is None else bias.contiguous()
    y = q.new_empty(*q.shape[:3], v.shape[-1])
    _attention(q, k, v, bias, y, *_sizes(q, k, v, bias))
    return y.transpose(1, 2)


def attention_gradients(
    dy: Float[Tensor, "batch heads queries values"],
    q: Float[Tensor, "batch heads queries features"],
    k: Float[Tensor, "batch heads keys features"],
    v: Float[Tensor, "batch heads keys values"],
    bias: Float[Tensor, "#heads queries keys"] | None,
    *,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients with respect to q, k and v, and that of the bias in sums of a fixed order."""
    dy, q, k, v = (_time_first(x) for x in (dy, q, k, v))
    bias = None if bias is None else bias.contiguous()
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    parts, dbias = len(q), None
    if for_bias and bias is not None:
        parts = min(len(q), _PARTS)
        dbias = bias.new_zeros(parts, *bias.shape)
    sums = dq, dk, dv, dbias
    _attention_gradients(q, k, v, bias, dy, *sums, *_sizes(q, k, v, bias), parts)
    inputs = (x.transpose(1, 2) for x in (dq, dk, dv))
    return *inputs, None if dbias is None else dbias.sum(0)  # pyright: ignore[reportReturnType]


def _sizes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    batch, queries, heads, features = q.shape
    biases = 1 if bias is None else len(bias)
    return batch, heads, queries, k.shape[1], features, v.shape[-1], biases


def _time_first(x: Tensor) -> Tensor:
    """(batch, time, heads, width), as layers have it in memory."""
    return x.transpose(1, 2).contiguous()
