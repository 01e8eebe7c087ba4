"""The selective scan in compiled code: csrc/selective_scan.h."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.cpu_rows import as_rows
from robustssm.ops.kernels.second_order import differentiable_gradients

_STEPS = 32  # between the states that forward keeps, as in csrc

_scan = native.function("selective_scan", "p" * 10 + "i" * 8)
_scan_back = native.function("selective_scan_back", "p" * 18 + "i" * 8)


class SelectiveScan(Function):
    """Keeps the states of every 32nd step and computes the others again.

    Inputs are u, x, A, B, C, D, and bias and z or None; then whether the gain is held, whether a
    gradient may be asked for, and the same function made of differentiable operations.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, held, keep, composed = inputs
        u, x, A, B, C, D, bias, z = _laid_out(tensors)
        batch, length, channels = u.shape
        y, starts = torch.empty_like(u), None
        if keep:
            chunks = max(math.ceil(length / _STEPS), 1)
            starts = u.new_empty(batch, chunks - 1, A.shape[1], channels)
        sizes = *u.shape, A.shape[1], B.stride(1), 0 if z is None else z.stride(1)
        _scan(u, x, A, B, C, D, bias, z, y, starts, *sizes, _span(channels), int(held))
        if keep:
            ctx.save_for_backward(*tensors, starts)
            ctx.held, ctx.composed = held, composed
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        wanted = ctx.needs_input_grad[: len(inputs)]
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            found = differentiable_gradients(ctx.composed, inputs, wanted, gradients[0])
            return *found, None, None, None
        inputs = _laid_out(inputs)
        u, _, A, B, *_, z = inputs
        batch, length, channels = u.shape
        states, span = A.shape[1], _span(channels)
        groups = math.ceil(channels / span)
        du, dx = torch.empty_like(u), torch.empty_like(u)
        dB, dC = (u.new_empty(groups, batch, length, states) for _ in range(2))
        dz = None if z is None else torch.empty_like(u)
        dA = u.new_empty(batch, states, channels) if wanted[2] else None
        dD, db = (u.new_empty(batch, channels) if wanted[k] else None for k in (5, 6))
        sizes = *u.shape, states, B.stride(1), 0 if z is None else z.stride(1)
        slopes = du, dx, dB, dC, dz, dA, dD, db
        _scan_back(*inputs, starts, gradients[0].contiguous(), *slopes, *sizes, span, int(ctx.held))
        return (
            *(du, dx, None if dA is None else dA.sum(0).T),
            *(dB.sum(0) if groups > 1 else dB[0], dC.sum(0) if groups > 1 else dC[0]),
            *(None if part is None else part.sum(0) for part in (dD, db)),
            *(dz, None, None, None),
        )


def _laid_out(inputs: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """As compiled code reads them: contiguous, but for B, C and z, which may be columns."""
    u, x, A, B, C, D, bias, z = inputs
    assert B is not None and C is not None
    B, C, z = as_rows(B), as_rows(C), None if z is None else as_rows(z)
    if B.stride(1) != C.stride(1):
        B, C = B.contiguous(), C.contiguous()
    u, x, A, D, bias = (None if v is None else v.contiguous() for v in (u, x, A, D, bias))
    return u, x, A, B, C, D, bias, z


def _span(channels: int) -> int:
    """Channels of a group: whole vectors at every level, a chunk within the second-level cache.

    It does not depend on the batch: the gradients of a row are the same bytes in every batch.
    """
    return 64 if channels <= 128 else 128
