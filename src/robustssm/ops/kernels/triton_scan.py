"""Linear recurrences in Triton: given factors, real or complex, and several averages per channel.

Checked with the Triton interpreter; not yet run on a GPU. (It compiles for compute capability 9.0
without spills, and so that scans along time exchange nothing between the lanes of a warp.)

One program takes 32 channels of one row of the batch and goes through time 16 steps at a time: it
loads them at once, scans them, and keeps the state in registers. Work grows with the length, and
memory is read and written once: b and h (and varying factors) forwards; the gradient of h, h and
the gradients of a and b backwards. For a batch of few rows and channels the GPU is not full; then
the number of steps, not memory, sets the time.

The gradient of factors that are the same at every step is summed over time within a program and
over rows by torch, always in the same order: no atomics.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from robustssm.ops.kernels.second_order import differentiable_gradients
from robustssm.ops.kernels.triton_support import (
    Verdict,
    available,
    blocks,
    launch,
    placed,
    power_of_two,
    require,
)

__all__ = [
    "available",
    "linear_scan",
    "moving_average",
    "scan_",
    "supports_average",
    "supports_scan",
]

_STEPS = 16
_LANES = 32
_MOST_MODES = 256


def supports_scan(a: Inexact[Tensor, "..."], b: Inexact[Tensor, "batch time *channels"]) -> Verdict:
    """Whether `linear_scan` takes these: yes, or no and why."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    if dtype not in (torch.float32, torch.complex64):
        return Verdict(f"numbers must be float32 or complex64; they are {dtype}.")
    varying = a.ndim == b.ndim and a.shape[1:] == b.shape[1:] and len(a) in (1, len(b))
    if a.shape != b.shape[2:] and not varying:
        return Verdict(
            "factors must be (*channels) or (batch or 1, time, *channels) for b of shape "
            f"{tuple(b.shape)}; they are {tuple(a.shape)}."
        )
    if b.shape[2:].numel() > 65535 * _LANES:
        return Verdict(f"a launch takes at most {65535 * _LANES} channels.")
    return placed(a, b)


def linear_scan(
    a: Inexact[Tensor, "..."], b: Inexact[Tensor, "batch time *channels"], *, reverse: bool = False
) -> Inexact[Tensor, "batch time *channels"]:
    """h[t] = a[t] h[t-1] + b[t], or with `reverse` a[t] h[t+1] + b[t]; differentiable twice.

    Second derivatives are those of `ops.scan.linear_scan_reference`.

    Args:
        a: Factors, float32 or complex64: (*channels), or (batch or 1, time, *channels).
        b: What is added, (batch, time, *channels), float32 or complex64.
        reverse: Runs from the last step to the first.

    Returns:
        h, in the common dtype of `a` and `b`.

    Raises:
        ValueError: If kernels cannot run here (`available`) or not on these (`supports_scan`).
    """
    require("linear_scan", available(), supports_scan(a, b))
    dtype = torch.promote_types(a.dtype, b.dtype)
    return _Scan.apply(a.to(dtype), b.to(dtype), reverse)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def scan_(
    a: Inexact[Tensor, "..."], b: Inexact[Tensor, "batch time *channels"], *, reverse: bool = False
) -> Inexact[Tensor, "batch time *channels"]:
    """`linear_scan` without a graph, written over `b`, which must be contiguous.

    Args:
        a: Factors, in the dtype of `b`.
        b: What is added; h when it returns.
        reverse: Runs from the last step to the first.

    Returns:
        `b`.

    Raises:
        ValueError: If kernels cannot run here or not on these, or if `b` cannot be written over.
    """
    fits = b.is_contiguous() and not b.is_conj() and a.dtype == b.dtype
    ready = Verdict() if fits else Verdict("b must be contiguous and of the dtype of a.")
    require("scan_", available(), supports_scan(a, b), ready)
    _launch(a, b, b, reverse)
    return b


class _Scan(torch.autograd.Function):
    """The gradient of a scan is a scan the other way, whose factors are one step late."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, reverse: bool) -> Tensor:
        h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
        _launch(a, b, h, reverse)
        ctx.save_for_backward(a, b, h)
        ctx.reverse = reverse
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b, h = ctx.saved_tensors
        reverse, wanted = ctx.reverse, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            from robustssm.ops.scan import linear_scan_reference

            run = functools.partial(linear_scan_reference, reverse=reverse)
            return *differentiable_gradients(run, (a, b), wanted, gradients[0]), None
        g = torch.empty_like(h)
        if not wanted[0]:
            _launch(a, gradients[0], g, not reverse, adjoint=True)
            return None, g, None
        varying = a.ndim == b.ndim
        slopes = torch.empty_like(h) if varying else h.new_empty(len(h), *a.shape)
        _launch(a, gradients[0], g, not reverse, adjoint=True, states=h, slopes=slopes)
        if varying:
            return (slopes.sum(0, keepdim=True) if len(a) == 1 else slopes), g, None
        return slopes.sum(0), g, None


def _launch(
    a: Tensor,
    b: Tensor,
    h: Tensor,
    reverse: bool,
    *,
    adjoint: bool = False,
    states: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    """Writes the scan into `h`, and into `slopes` the gradient of the factors."""
    from robustssm.ops.kernels import triton_scan_kernels as device

    batch, time = b.shape[:2]
    channels = b.shape[2:].numel()
    varying = a.ndim == b.ndim
    launch(
        device.complex_scan if b.is_complex() else device.real_scan,
        (batch, blocks(channels, _LANES)),
        _real(a),
        _real(b),
        _real(h),
        _real(h if states is None else states),
        _real(h if slopes is None else slopes),
        time,
        channels,
        int(varying and len(a) > 1),
        REVERSE=reverse,
        VARYING=varying,
        ADJOINT=adjoint,
        SLOPES=slopes is not None,
        T=_STEPS,
        C=_LANES,
        num_warps=1,
    )


def _real(x: Tensor) -> Tensor:
    """The numbers as they lie in memory; a copy only where they do not lie one after the other."""
    x = x.detach().resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(x) if x.is_complex() else x


def supports_average(
    u: Float[Tensor, "batch time channels"],
    q: Float[Tensor, "rows modes"],
    weights: Float[Tensor, "rows modes"],
) -> Verdict:
    """Whether `moving_average` takes these: yes, or no and why."""
    if u.dtype not in (torch.float32, torch.bfloat16):
        return Verdict(f"inputs must be float32 or bfloat16; they are {u.dtype}.")
    if (q.dtype, weights.dtype) != (torch.float32, torch.float32):
        return Verdict(f"rates and weights must be float32; got {q.dtype} and {weights.dtype}.")
    if len(q) != u.shape[2]:
        return Verdict(f"rates must be (channels, modes) of {u.shape[2]} channels; got {len(q)}.")
    if q.shape[1] > _MOST_MODES:
        return Verdict(f"a channel has at most {_MOST_MODES} averages here; got {q.shape[1]}.")
    return placed(u, q, weights)


def moving_average(
    u: Float[Tensor, "batch time channels"],
    q: Float[Tensor, "channels modes"],
    weights: Float[Tensor, "channels modes"],
    *,
    reverse: bool = False,
) -> Float[Tensor, "batch time channels"]:
    """y[t, c] = sum_n weights[c, n] x[t, c, n] with x[t] = q x[t-1] + u[t]; differentiable twice.

    Nothing of the size of all averages is ever stored. The input gradient is the same against time;
    gradients of rates and weights go through those of the kernel sum_n weights q^lag, by FFT.

    Args:
        u: Inputs, (batch, time, channels), float32 or bfloat16.
        q: Rates, (channels, modes), float32.
        weights: How averages are read, (channels, modes), float32.
        reverse: x[t] = q x[t+1] + u[t] instead: the backward direction of a bidirectional average.

    Returns:
        y, in the dtype of `u`.

    Raises:
        ValueError: If kernels cannot run here (`available`) or not on these (`supports_average`).
    """
    require("moving_average", available(), supports_average(u, q, weights))
    return _Average.apply(u, q, weights, reverse)  # pyright: ignore[reportReturnType]


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, q: Tensor, weights: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(u, q, weights)
        ctx.reverse = reverse
        return _averages(u, q, weights, reverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), wanted, reverse = gradients, ctx.needs_input_grad, ctx.reverse
        u, q, weights = ctx.saved_tensors
        run = functools.partial(_by_convolution, reverse=reverse)
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return *differentiable_gradients(run, (u, q, weights), wanted, g), None
        du = _averages(g, q, weights, not reverse) if wanted[0] else None
        if not (wanted[1] or wanted[2]):
            return du, None, None, None
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, weights)]
            y = run(u.detach(), *leaves)
        return du, *torch.autograd.grad(y, leaves, g, materialize_grads=True), None


def _averages(u: Tensor, q: Tensor, weights: Tensor, reverse: bool) -> Tensor:
    from robustssm.ops.kernels import triton_scan_kernels as device

    u, q, weights = (x.detach().contiguous() for x in (u, q, weights))
    (batch, time, channels), modes = u.shape, q.shape[1]
    y, N = torch.empty_like(u), power_of_two(modes)
    tile = {"T": min(_STEPS, 1024 // N), "N": N, "C": _LANES, "num_warps": min(8, max(1, N // 4))}
    grid = (batch, blocks(channels, _LANES))
    arguments = (u, q, weights, y, time, channels, modes)
    launch(device.averages, grid, *arguments, REVERSE=reverse, **tile)
    return y


def _by_convolution(u: Tensor, q: Tensor, weights: Tensor, reverse: bool) -> Tensor:
    """The same in torch operations, with the kernel of the averages and FFTs."""
    from robustssm.ops.structured import vandermonde_product

    time = u.shape[1]
    spectrum = torch.fft.rfft(vandermonde_product(weights, q.double(), time).T, n=2 * time, dim=0)
    U = torch.fft.rfft(u.float(), n=2 * time, dim=1)
    product = U * (spectrum.conj() if reverse else spectrum)
    return torch.fft.irfft(product, n=2 * time, dim=1)[:, :time].to(u.dtype)
