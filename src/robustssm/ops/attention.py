"""Softmax attention with a bias on the scores.

Legend: b batch, h head, t query, s key, c feature, e value feature.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import cpu_attention, native
from robustssm.ops.kernels.second_order import differentiable_gradients

_CHUNK_ELEMENTS = 2**18  # scores at a time: 1 MiB, which stays in the cache


def softmax_attention(
    q: Float[Tensor, "batch heads queries features"],
    k: Float[Tensor, "batch heads keys features"],
    v: Float[Tensor, "batch heads keys values"],
    bias: Float[Tensor, "#heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries values"]:
    """softmax(q k^T / sqrt(features) + bias) v.

    On the CPU a few examples at a time, their scores computed again for the backward pass: nothing
    of the size queries * keys is kept. Elsewhere through torch's fused form. Differentiable any
    number of times on the CPU.

    Args:
        q: Queries, (batch, heads, queries, features).
        k: Keys, (batch, heads, keys, features).
        v: Values, (batch, heads, keys, values).
        bias: Added to the scores before the softmax, (heads or 1, queries, keys); -inf forbids, but
            must leave every query a key.

    Returns:
        (batch, heads, queries, values), in the dtype of `v`; computed in the widest one given.

    Numerics: batch 64, 4 heads of 16, length 196, with input gradients on one core: 57 ms; all
        scores at once 142 ms.
    """
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    mask = None if bias is None else bias.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
        if q.device.type == "cpu":
            given = [x for x in (q, k, values, mask) if x is not None]
            made = _Compiled if native.available(*given) else _Attention
            y = made.apply(q / math.sqrt(q.shape[-1]), k, values, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, values, attn_mask=mask)
        return y.to(v.dtype)  # pyright: ignore[reportOptionalMemberAccess]


def softmax_attention_reference(
    q: Float[Tensor, "batch heads queries features"],
    k: Float[Tensor, "batch heads keys features"],
    v: Float[Tensor, "batch heads keys values"],
    bias: Float[Tensor, "#heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries values"]:
    """The same, one query at a time."""
    outputs = []
    for t, query in enumerate(q.unbind(2)):
        scores = torch.einsum("bhc,bhsc->bhs", query, k) / math.sqrt(q.shape[-1])
        if bias is not None:
            scores = scores + bias[:, t]
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        outputs.append(torch.einsum("bhs,bhse->bhe", weights, v))
    return torch.stack(outputs, 2)


class _Compiled(Function):
    """softmax(q k^T + bias) v, a block of queries against all keys at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return cpu_attention.attention(q, k, v, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), inputs, wanted = gradients, ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return (*differentiable_gradients(_composed, inputs, wanted, dy),)
        return cpu_attention.attention_gradients(dy, *inputs, for_bias=wanted[3])


class _Attention(Function):
    """softmax(q k^T + bias) v, by parts of the batch and heads that fit the cache."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        y = _like(q, v.shape[-1])
        for part in _parts(q, k):
            torch.bmm(_weights(part, q, k, bias), v[part], out=y[part])
        ctx.save_for_backward(q, k, v, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (q, k, v, bias, y) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            inputs, wanted = (q, k, v, bias), ctx.needs_input_grad
            return (*differentiable_gradients(_composed, inputs, wanted, dy),)
        dq, dk, dv = (_like(x, x.shape[-1]) for x in (q, k, v))
        dbias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        through_softmax = (dy * y).sum(-1, keepdim=True)
        for part in _parts(q, k):
            weights = _weights(part, q, k, bias)
            torch.bmm(weights.mT, dy[part], out=dv[part])
            slopes = torch.bmm(dy[part], v[part].mT).sub_(through_softmax[part]).mul_(weights)
            torch.bmm(slopes, k[part], out=dq[part])
            torch.bmm(slopes.mT, q[part], out=dk[part])
            if dbias is not None:
                dbias[part[1] if len(dbias) > 1 else 0] += slopes.sum(0)
        return dq, dk, dv, dbias


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[slice, int]]:
    """Some examples and one head at a time."""
    rows = max(1, _CHUNK_ELEMENTS // (q.shape[2] * k.shape[2]))
    for head in range(q.shape[1]):
        for first in range(0, len(q), rows):
            yield slice(first, first + rows), head


def _weights(part: tuple[slice, int], q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """(examples, queries, keys)."""
    if bias is None:
        scores = torch.bmm(q[part], k[part].mT)
    else:
        scores = torch.baddbmm(bias[part[1] if len(bias) > 1 else 0], q[part], k[part].mT)
    return torch.softmax(scores, -1)


def _like(x: Tensor, width: int) -> Tensor:
    """Empty (batch, heads, time, width), but with heads beside width in memory, as layers do."""
    batch, heads, time, _ = x.shape
    return x.new_empty(batch, time, heads, width).transpose(1, 2)


def _composed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`_Attention` in operations that autograd knows."""
    scores = q @ k.mT if bias is None else q @ k.mT + bias
    return torch.softmax(scores, -1) @ v
