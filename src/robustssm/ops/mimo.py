"""A diagonal system with many inputs and outputs: matrix product, scan, matrix product.

Compiled, a block of time goes through all three while it is in the cache. Milliseconds on one core
with AVX-512, batch 4, length 1024, 128 channels, forward / gradient of u / all gradients: 128 modes
2.2 / 2.2 / 5.0, 64 modes 1.1 / 1.1 / 2.4, which is 9 parts in 10 of what the products alone can
reach there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.kernels.second_order import differentiable_gradients
from robustssm.ops.scan import linear_scan


def mimo_scan(
    u: Float[Tensor, "batch length channels"],
    into: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    a: Complex[Tensor, " modes"],
    skip: Float[Tensor, " channels"],
) -> Float[Tensor, "batch length channels"]:
    """y[t] = Re(C x[t]) + skip u[t], x[t] = a x[t-1] + B u[t] from x[-1] = 0, all in real numbers.

    Differentiable any number of times. Nothing but its arguments is kept for the gradient with
    respect to `u`; states are kept only if another one is wanted.

    Args:
        u: Inputs, (batch, length, channels), float32 or float64.
        into: Rows of Re B and, below them, of Im B: (2 modes, channels).
        out: Columns of Re C as rows and, below them, of -Im C: (2 modes, channels).
        a: Factors of the states, (modes,), |a| <= 1 for a stable system.
        skip: (channels,).

    Returns:
        y, (batch, length, channels).

    Raises:
        ValueError: If `into` and `out` are not twice as high as `a` is long.

    Numerics: relative to the largest entry, y and all gradients are within 2e-6 of float64 in
        float32, for |a| <= 0.9999 and lengths up to 1024.
    Oracle: `mimo_scan_reference`.
    """
    if not len(into) == len(out) == 2 * len(a):
        raise ValueError(
            "`mimo_scan` needs two rows of into and out for each entry of a, real and imaginary "
            f"part; got {len(into)} and {len(out)} rows for {len(a)} modes. Stack real and imag."
        )
    if native.available(u, into, out, skip) and a.dtype == torch.complex64:
        return _Compiled.apply(u, into, out, a, skip)  # pyright: ignore[reportReturnType]
    return _plain(u, into, out, a, skip)


def mimo_scan_reference(
    u: Float[Tensor, "batch length channels"],
    into: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    a: Complex[Tensor, " modes"],
    skip: Float[Tensor, " channels"],
) -> Float[Tensor, "batch length channels"]:
    """`mimo_scan`, as the loop that defines it."""
    B, C = torch.complex(*into.chunk(2)), torch.complex(*out.chunk(2)).conj()
    x, y = u.new_zeros(len(u), len(a)).to(a.dtype), []
    for u_t in u.unbind(1):
        x = a * x + u_t.to(a.dtype) @ B.T
        y.append((x @ C).real + skip * u_t)
    return torch.stack(y, 1)


def _plain(u: Tensor, into: Tensor, out: Tensor, a: Tensor, skip: Tensor) -> Tensor:
    """In torch; real and imaginary parts of a mode side by side, as complex numbers lie."""
    into, out = (x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) for x in (into, out))
    driven = torch.view_as_complex(F.linear(u, into).unflatten(-1, (-1, 2)))
    x = torch.view_as_real(linear_scan(a, driven)).flatten(-2)
    return torch.addcmul(F.linear(x, out.T), skip, u)


class _Compiled(Function):
    """All in one pass over time; the gradient with respect to u is the same system backwards."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        u, *system = inputs
        y, states = cpu_scan.system(*inputs, keep=any(ctx.needs_input_grad[1:]))
        ctx.save_for_backward(None if states is None else u, *system, states)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (u, *system, states) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            # Without u none but du is wanted, which does not depend on it.
            inputs = torch.zeros_like(dy) if u is None else u, *system
            return (*differentiable_gradients(_plain, inputs, ctx.needs_input_grad, dy),)
        if states is not None:
            return cpu_scan.system_gradients(dy, u, states, *system)
        return cpu_scan.system(dy, *system, adjoint=True)[0], None, None, None, None
