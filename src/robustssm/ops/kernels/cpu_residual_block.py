"""A residual block in compiled code: csrc/block.h."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.cpu_convolution import plan

_forward = native.function("block_forward", "pppf")
_backward = native.function("block_backward", "pppf")

_NORMS = {"none": 0, "pre": 1, "post": 2}
_GATES = {None: 0, "relu": 1, "sigmoid": 2, "tanh": 3}


def supports(h: Float[Tensor, "batch length channels"], form: str) -> bool:
    """Whether the compiled block can take these sequences, with a kernel prepared in that form."""
    return (
        form.startswith("compiled")
        and native.available(h)
        and h.shape[2] % native.vector_width() == 0
        and h.shape[1] > 0
    )


class Block(Function):
    """Takes `ops.residual_block.PreparedBlock`, and its reference for second derivatives."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, block: Any, reference: Callable[..., Tensor]) -> Tensor:
        laid = h.contiguous()
        out = torch.empty_like(laid)
        keeps = _keeps(laid, block) if ctx.needs_input_grad[0] else [None] * 6
        _call(_forward, laid, None, block, [out, *keeps], transposed=True)
        ctx.save_for_backward(h, *keeps)
        ctx.block, ctx.reference = block, reference
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        h, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            x = h.view_as(h)
            out = ctx.reference(x, ctx.block)
            return torch.autograd.grad(out, x, gradients[0], create_graph=True)[0], None, None
        h, g = h.contiguous(), gradients[0].contiguous()
        dh = torch.empty_like(h)
        _call(_backward, h, g, ctx.block, [dh, *kept], transposed=False)
        return dh, None, None


def _keeps(h: Tensor, block: Any) -> list[Tensor | None]:
    """What the gradient needs: y, S y + b, V y + c, W a + w, the sum, and moments."""

    def room(wanted: bool) -> Tensor | None:
        return torch.empty_like(h) if wanted else None

    return [
        room(block.gelu or block.gate is not None),
        room(block.gate is not None),
        room(block.shift is not None),
        room(block.mixing_gelu),
        room(block.norm == "post"),
        None if block.norm == "none" else h.new_empty(*h.shape[:2], 2),
    ]


def _call(
    function: Callable[..., None],
    h: Tensor,
    g: Tensor | None,
    block: Any,
    outputs: Sequence[Tensor | None],
    *,
    transposed: bool,
) -> None:
    """Matrices multiply rows from the right: forward transposed, backward as they are."""

    def matrix(dense: Any) -> Tensor | None:
        if dense is None:
            return None
        return dense.transposed if transposed else dense.weight

    def bias(dense: Any) -> Tensor | None:
        return None if dense is None else dense.bias

    batch, length, channels = h.shape
    n1, n2, *tables = (0, 0, None, None, None)
    if block.kernel.form == "compiled_fft":
        n1, n2, *tables = plan(length)
    sizes = (
        *(batch, length, channels, n1, n2, _NORMS[block.norm], int(block.residual)),
        *(_GATES[block.gate], int(block.gelu), int(block.mixing is not None)),
        int(block.mixing_gelu),
    )
    inputs = (
        *(block.kernel.aid, *tables, matrix(block.scale), bias(block.scale)),
        *(matrix(block.shift), bias(block.shift), matrix(block.mixing), bias(block.mixing)),
        *(block.gain, block.offset, h, g),
    )
    function(
        (ctypes.c_int64 * len(sizes))(*sizes), _pointers(inputs), _pointers(outputs), block.epsilon
    )


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    raw = [None if x is None else x.data_ptr() for x in tensors]
    return (ctypes.c_void_p * len(raw))(*raw)
