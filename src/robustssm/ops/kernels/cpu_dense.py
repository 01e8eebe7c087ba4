"""Linear maps in compiled code: csrc/matrix.h."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.second_order import differentiable_gradients

_PARTS = 8  # of the rows, at most, each with a weight gradient of its own: work for so many threads
_PART_ROWS = 512  # in a part, at least

_dense = native.function("dense", "pppp" + "i" * 6)
_gradients = native.function("dense_gradients", "pppp" + "i" * 6)


class Dense(Function):
    """x W^T + b of x (..., inputs), W (outputs, inputs) and b (outputs) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        bias = None if bias is None else bias.contiguous()
        return _times(x, weight, bias, transposed=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, bias) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return (*differentiable_gradients(F.linear, (x, weight, bias), wanted, g),)
        dx = _times(g, weight, None, transposed=False) if wanted[0] else None
        if wanted[1]:
            return dx, *_sums(x, g, for_bias=wanted[2])
        return dx, None, g.flatten(0, -2).sum(0) if wanted[2] else None


def _times(x: Tensor, matrix: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    """Rows x times the matrix, or times its transpose, plus bias."""
    if 1 not in matrix.stride():
        matrix = matrix.contiguous()
    rows, (depth, columns), strides = _as_rows(x), matrix.shape, matrix.stride()
    if transposed:
        depth, columns, strides = columns, depth, strides[::-1]
    y = x.new_empty(*x.shape[:-1], columns)
    _dense(rows, matrix, bias, y, len(rows), depth, columns, rows.stride(0), *strides)
    return y


def _sums(x: Tensor, g: Tensor, *, for_bias: bool) -> tuple[Tensor, Tensor | None]:
    """g^T x, and the sum of g: in parts that depend on the sizes alone, then in their order."""
    x, g = _as_rows(x), _as_rows(g)
    (rows, inputs), outputs = x.shape, g.shape[1]
    dw, db = x.new_empty(outputs, inputs), x.new_empty(outputs) if for_bias else None
    parts = max(1, min(_PARTS, rows // _PART_ROWS))
    _gradients(x, g, dw, db, rows, inputs, outputs, x.stride(0), g.stride(0), parts)
    return dw, db


def _as_rows(x: Tensor) -> Tensor:
    """(rows, width), a view where rows are equally far apart, each of neighbours in memory."""
    x = x.flatten(0, -2).resolve_neg()
    return x if x.stride(1) == 1 else x.contiguous()
