"""The response of a diagonal plus rank one in compiled code: csrc/low_rank.h."""

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native

_response = native.function("low_rank_response", "ppppppiii")
_gradients = native.function("low_rank_gradients", "pppppppppppiii")


def response(
    e: Complex[Tensor, "rows state"],
    q: Complex[Tensor, "rows state"],
    r: Complex[Tensor, "rows state"],
    b: Complex[Tensor, "rows state"],
    c: Complex[Tensor, "rows state"],
    length: int,
) -> Float[Tensor, "rows length"]:
    """`ops.low_rank.low_rank_response` in float32."""
    rows, state = c.shape
    parts = torch.view_as_real(torch.stack([v.expand(rows, state) for v in (e, q, r, b, c)]))
    # Channels innermost: (which, state, real or imaginary, rows).
    parts = parts.float().permute(0, 2, 3, 1).contiguous()
    return _Response.apply(parts, length)  # pyright: ignore[reportReturnType]


class _Response(Function):
    """One tensor of e, q, r, b, c in, so that their gradients come back as one."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(parts)
        _, state, _, rows = parts.shape
        e, q, r, b, c = parts.unbind(0)
        K = parts.new_empty(length, rows)
        _response(e, q, r, c, b, K, length, state, rows)
        return K.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (parts,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return _plain_gradient(parts, *gradients), None
        _, state, _, rows = parts.shape
        slopes = torch.empty_like(parts)
        (e, q, r, b, c), (de, dq, dr, db, dc) = parts.unbind(0), slopes.unbind(0)
        g = gradients[0].T.contiguous()
        _gradients(e, q, r, c, b, g, de, dq, dr, dc, db, len(g), state, rows)
        return slopes, None


def _plain_gradient(parts: Tensor, g: Tensor) -> Tensor:
    """The gradient of `parts` as torch operations: for second derivatives."""
    view = parts.view_as(parts)
    e, q, r, b, c = torch.view_as_complex(view.permute(0, 3, 1, 2).contiguous())
    x, taps = b, []
    for _ in range(g.shape[1]):
        taps.append(2 * (c * x).real.sum(-1))
        x = e * x - q * (2 * (r * x).real.sum(-1, keepdim=True))
    return torch.autograd.grad(torch.stack(taps, -1), view, g, create_graph=True)[0]
