"""Layer norm in compiled code: csrc/layer_norm.h."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.second_order import differentiable_gradients

_ITEM_ROWS = 64  # NORM_ROWS: each has its own sums for the gradients of gain and offset

_layer_norm = native.function("layer_norm", "pppppf" + "i" * 2)
_gradients = native.function("layer_norm_gradients", "p" * 6 + "i" * 5)


class LayerNorm(Function):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        laid, width = x.contiguous(), len(weight)
        y = torch.empty_like(laid)
        rows = laid.numel() // width
        moments = laid.new_empty(rows, 2)
        gain, offset = weight.contiguous(), bias.contiguous()
        _layer_norm(laid, gain, offset, y, moments, epsilon, rows, width)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, bias, moments) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated

            def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return F.layer_norm(x, weight.shape, weight, bias, ctx.epsilon)

            return *differentiable_gradients(norm, (x, weight, bias), wanted, g), None
        laid, (rows, width) = x.contiguous(), (len(moments), len(weight))
        g, steps = _grouped(g)
        dx = torch.empty_like(laid) if wanted[0] else None
        sums = None
        if wanted[1] or wanted[2]:
            sums = moments.new_empty(-(-rows // _ITEM_ROWS), 2, width)
        _gradients(laid, weight.contiguous(), moments, g, dx, sums, rows, width, *steps)
        if sums is None:
            return dx, None, None, None
        dweight, dbias = sums.sum(0)
        return dx, dweight if wanted[1] else None, dbias if wanted[2] else None, None


def _grouped(g: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Rows per group, and the steps from group to group and from row to row: no copy of a mean's.

    The gradient of a mean over tokens is the same memory for all tokens of an example.
    """
    g = g.resolve_neg()
    if g.ndim == 3 and g.stride(2) == 1:
        return g, (g.shape[1], g.stride(0), g.stride(1))
    g = g.contiguous()
    return g, (1, g.shape[-1], 0)
