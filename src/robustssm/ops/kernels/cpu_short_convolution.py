"""The short convolution in compiled code: csrc/short_convolution.h."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.cpu_rows import as_rows
from robustssm.ops.kernels.second_order import differentiable_gradients

MOST_TAPS = 16
_STEPS = 128  # of a piece of work, as in csrc

_convolve = native.function("short_convolution", "ppppiiiii")
_back = native.function("short_convolution_back", "ppppppiiiii")


class ShortConvolution(Function):
    """Inputs are x, weight and bias, then the same function made of differentiable operations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, composed: Callable[..., Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        x, weight, bias = as_rows(x), weight.contiguous(), bias.contiguous()
        y = x.new_empty(x.shape)
        _convolve(x, weight, bias, y, *x.shape, weight.shape[1], x.stride(1))
        ctx.composed = composed
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return *differentiable_gradients(ctx.composed, inputs, wanted, gradients[0]), None
        x, weight, bias = as_rows(inputs[0]), *(v.contiguous() for v in inputs[1:])
        batch, length, channels = x.shape
        taps, dx, parts = weight.shape[1], x.new_empty(x.shape), None
        if wanted[1] or wanted[2]:
            parts = x.new_empty(batch * math.ceil(length / _STEPS), taps + 1, channels)
        dy = gradients[0].contiguous()
        _back(x, weight, bias, dy, dx, parts, *x.shape, taps, x.stride(1))
        if parts is None:
            return dx, None, None, None
        total = parts.sum(0)
        return dx, total[:taps].T, total[taps], None
