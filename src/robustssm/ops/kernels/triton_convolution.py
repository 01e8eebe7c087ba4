"""Causal convolution on tensor cores: every channel's Toeplitz matrix in tiles, in Triton.

Checked with the Triton interpreter; not yet run on a GPU. (It compiles for compute capability 9.0,
where the products become warp-group instructions and no register is spilt.)

Three kernels: (batch, length, channels) is copied to (channels, batch, length), multiplied tile by
tile, and copied back. Reversal of time, which makes the product that of the input gradient, and
the change of precision happen inside the copies. With tiles of T times, counted per entry of u:

- length + T floating-point operations: at length 1024 and T = 128, 1152 where 1025 would do, as
  half of each tile on the diagonal is empty. Beyond a few thousand steps the FFT, or the chunks of
  `triton_state_space`, should be the better form; nothing here is wrong there.
- in float32, 24 bytes of main memory (a copy reads and writes 4 each, the product as well) where
  8 are the least; in bfloat16 half. The product reads its input again for every later tile of the
  output, (length / T + 1) / 2 times, from the second cache, and the Toeplitz tiles, T + S - 1 taps
  each, from the first.

Rounding, emulated in torch for S4's and S4D's first kernels at length 1024, relative to max|y|:
2e-7 with "tf32x3", as in float32 itself, 4e-4 with "tf32" and 3e-3 with "bf16".

The gradient of the taps is a pair of real FFTs in torch: outside of attacks it is needed once for
every ten of the others.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels.triton_support import (
    DotPrecision,
    Verdict,
    available,
    blocks,
    launch,
    placed,
    power_of_two,
    require,
)

__all__ = ["available", "causal_convolution", "convolve", "supports"]

COPY = {"T": 64, "C": 32, "num_warps": 4}
"""Times and channels of one tile of the copies."""


class _Tile(NamedTuple):
    """Times of the output, times of the input, sequences and warps of one program's step."""

    T: int
    S: int
    N: int
    num_warps: int


def supports(
    u: Float[Tensor, "batch length channels"], kernel: Float[Tensor, "channels taps"]
) -> Verdict:
    """Whether `causal_convolution` takes these: yes, or no and why."""
    if u.dtype not in (torch.float32, torch.bfloat16):
        return Verdict(f"sequences must be float32 or bfloat16; they are {u.dtype}.")
    if kernel.dtype != torch.float32:
        return Verdict(f"taps must be float32; they are {kernel.dtype}.")
    if kernel.shape != (u.shape[2], u.shape[1]):
        return Verdict(
            f"taps must be (channels, length) of the sequences, {(u.shape[2], u.shape[1])}; "
            f"they are {tuple(kernel.shape)}."
        )
    if u.shape[2] > 65535 or u.shape[0] > 65535:
        return Verdict("a launch takes at most 65535 channels and sequences.")
    return placed(u, kernel)


def causal_convolution(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
    *,
    precision: DotPrecision | None = None,
) -> Float[Tensor, "batch length channels"]:
    """y[b, t, c] = sum over s <= t of kernel[c, t - s] u[b, s, c]; differentiable twice.

    Second derivatives are torch's, through FFTs. A kernel that needs no gradient costs none.

    Args:
        u: Sequences, (batch, length, channels), float32 or bfloat16.
        kernel: One kernel per channel, (channels, length), float32; a skip is part of its tap 0.
        precision: How products round their operands; by default as torch's own matrix products
            may: "tf32" where TF32 is allowed, else "tf32x3".

    Returns:
        y, in the dtype of `u`, summed in float32.

    Raises:
        ValueError: If kernels cannot run here (`available`) or not on these (`supports`).
    """
    require("causal_convolution", available(), supports(u, kernel))
    chosen = precision or torch_precision()
    return _Convolution.apply(u, kernel, chosen)  # pyright: ignore[reportReturnType]


def convolve(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
    *,
    reverse: bool = False,
    precision: DotPrecision = "tf32x3",
) -> Float[Tensor, "batch length channels"]:
    """The kernels themselves, without a graph: y, or with `reverse` its adjoint.

    The adjoint is x[b, s, c] = sum over t >= s of kernel[c, t - s] u[b, t, c], which is also what
    the backward direction of a bidirectional layer computes.

    Args:
        u: Sequences, (batch, length, channels), float32 or bfloat16.
        kernel: Taps, (channels, length), float32.
        reverse: Runs against time.
        precision: How products round their operands.
    """
    from robustssm.ops.kernels import triton_convolution_kernels as device

    u, kernel = u.detach().contiguous(), kernel.detach().contiguous()
    batch, length, channels = u.shape
    narrow = precision == "bf16" or (u.dtype == torch.bfloat16 and precision != "ieee")
    x = u.new_empty(channels, batch, length, dtype=torch.bfloat16 if narrow else torch.float32)
    y, out = u.new_empty(channels, batch, length), torch.empty_like(u)
    copies = (batch, blocks(length, COPY["T"]), blocks(channels, COPY["C"]))
    tile = _tile(batch, length)
    products = (blocks(length, tile.T), blocks(batch, tile.N), channels)
    sizes, copy = (batch, length, channels), {"REVERSE": reverse, **COPY}
    launch(device.to_channel_major, copies, u, x, *sizes, **copy)
    constants = {"PRECISION": precision, **tile._asdict()}
    launch(device.toeplitz, products, x, kernel, y, batch, length, **constants)
    launch(device.to_batch_major, copies, y, out, *sizes, **copy)
    return out


def _tile(batch: int, length: int) -> _Tile:
    """Large enough to feed the tensor cores, no larger than the work; 16 is the least they take."""
    T = min(128, max(16, power_of_two(length)))
    N = min(64, max(16, power_of_two(batch)))
    return _Tile(T, min(32, T), N, 8 if T * N >= 8192 else 4)


def torch_precision() -> DotPrecision:
    """As torch's own matrix products may round: "tf32" where that is allowed, else "tf32x3"."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "tf32x3"


class _Convolution(torch.autograd.Function):
    """The input gradient is the convolution against time; the kernel's is a correlation."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, precision: DotPrecision) -> Tensor:
        ctx.save_for_backward(u, kernel)
        ctx.precision = precision
        return convolve(u, kernel, precision=precision)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (u, kernel) = gradients, ctx.saved_tensors
        for_u, for_kernel, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            du = _correlate(g, kernel.T).to(u.dtype) if for_u else None
            return du, _correlate(g, u).sum(0).T if for_kernel else None, None
        du = convolve(g, kernel, reverse=True, precision=ctx.precision) if for_u else None
        return du, _correlate_summed(g, u) if for_kernel else None, None


def _correlate(g: Tensor, x: Tensor) -> Tensor:
    """Sum over t >= lag of g[t] x[t - lag], along the axis before the last, in torch operations."""
    length = g.shape[1]
    G, X = (torch.fft.rfft(part.float(), n=2 * length, dim=-2) for part in (g, x))
    return torch.fft.irfft(G * X.conj(), n=2 * length, dim=-2)[..., :length, :]


def _correlate_summed(g: Tensor, u: Tensor) -> Tensor:
    """The sum of `_correlate` over the batch, as taps (channels, length); one inverse transform."""
    length = g.shape[1]
    G, U = (torch.fft.rfft(part.float(), n=2 * length, dim=1) for part in (g, u))
    spectrum = U.conj_physical_().mul_(G).sum(0)
    return torch.fft.irfft(spectrum, n=2 * length, dim=0)[:length].T.contiguous()
