"""Causal convolution of every channel with its own kernel: direct, by FFT, by Toeplitz matrices.

Forward and backward in nanoseconds per entry of u, on one core of an AVX-512 server, gradients with
respect to u and the kernel / to u alone ("autograd": torch.fft on transposed views):

| batch, length, channels | autograd | FFT here | Toeplitz here |
|---|---|---|---|
| 64, 32, 64 | 16 / 17 | 17 / 13 | 11 / 8 |
| 64, 64, 64 | 14 / 13 | 18 / 14 | 14 / 9 |
| 256, 64, 128 | 36 / 32 | 18 / 13 | 14 / 10 |
| 256, 128, 128 | 65 / 55 | 19 / 14 | 23 / 13 |
| 256, 196, 128 | 68 / 58 | 21 / 16 | 32 / 18 |
| 32, 784, 32 | 23 / 20 | 24 / 17 | |
| 256, 784, 128 | 96 / 66 | 26 / 19 | |

Two cores: the FFT takes 10 / 7 for the third line and 17 / 11 for the last, Toeplitz 12 / 8 for the
third. What is saved on large batches is page faults: spectra are made a few rows at a time.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

Form = Literal["fft", "toeplitz"]

TOEPLITZ_UP_TO = 64
"""Longest sequence that Toeplitz matrices serve better than the FFT (table above)."""

_CHUNK = 1 << 18  # entries of u transformed at a time: spectra stay in the cache, no page faults


def causal_convolution(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
    *,
    form: Form | None = None,
) -> Float[Tensor, "batch length channels"]:
    """y[b, t, c] = sum over s <= t of kernel[c, t - s] u[b, s, c].

    Differentiable any number of times. A kernel that needs no gradient costs none: detach it where
    only the gradient with respect to `u` is wanted.

    Args:
        u: Sequences, (batch, length, channels), float32 or float64.
        kernel: One kernel per channel, (channels, length), in the dtype of `u`.
        form: How it is computed; by default the faster one for this length.

    Returns:
        y, (batch, length, channels).

    Numerics: relative to max|y|, float32 is within 5e-7 (FFT) and 2e-6 (Toeplitz) of float64 for
        lengths up to 1024.
    """
    form = form or ("toeplitz" if u.shape[1] <= TOEPLITZ_UP_TO else "fft")
    return (_Toeplitz if form == "toeplitz" else _FFT).apply(u, kernel)


def causal_convolution_reference(
    u: Float[Tensor, "batch length channels"], kernel: Float[Tensor, "channels length"]
) -> Float[Tensor, "batch length channels"]:
    """The sum as it is written, one lag at a time."""
    length = u.shape[1]
    return torch.stack(
        [
            torch.einsum("bsc,cs->bc", u[:, : t + 1], kernel[:, : t + 1].flip(1))
            for t in range(length)
        ],
        1,
    )


class _FFT(Function):
    """Real FFTs of twice the length, so that the circular convolution does not wrap.

    torch's own backward of rfft is a complex FFT of a zero-padded spectrum; by hand it is one more
    real FFT, as the adjoint of a convolution is a multiplication by the conjugate spectrum.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel)
        size = 2 * u.shape[1]
        spectrum = _spectrum(kernel)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        for rows in _chunks(u):
            product = torch.fft.rfft(u[rows], n=size, dim=1).mul_(spectrum)
            y[rows] = torch.fft.irfft(product, n=size, dim=1)[:, : u.shape[1]]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g,), (u, kernel) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return _differentiable_backward(g, u, kernel)
        size, length = 2 * u.shape[1], u.shape[1]
        for_u, for_kernel = ctx.needs_input_grad
        conjugate = _spectrum(kernel).conj_physical()
        du = torch.empty_like(g, memory_format=torch.contiguous_format) if for_u else None
        correlation = torch.zeros_like(conjugate)
        for rows in _chunks(g):
            G = torch.fft.rfft(g[rows], n=size, dim=1)
            if for_kernel:
                U = torch.fft.rfft(u[rows], n=size, dim=1)
                correlation += U.conj_physical_().mul_(G).sum(0)
            if du is not None:
                du[rows] = torch.fft.irfft(G.mul_(conjugate), n=size, dim=1)[:, :length]
        if not for_kernel:
            return du, None
        return du, torch.fft.irfft(correlation, n=size, dim=0)[:length].T.contiguous()


class _Toeplitz(Function):
    """One matrix product per channel, with T[t, s] = kernel[t - s], on (length, channels, batch).

    That layout is one matrix transposition away from (batch, length, channels), which torch does
    fast, unlike a general permutation.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel)
        return _batch_first(_multiply(_toeplitz(kernel), _batch_last(u)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g,), (u, kernel) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(g, u, kernel)
        for_u, for_kernel = ctx.needs_input_grad
        gt = _batch_last(g)
        du = _batch_first(_multiply(_toeplitz(kernel).mT, gt)) if for_u else None
        if not for_kernel:
            return du, None
        # M[t, s'] = sum_b g[t] u[length - 1 - s'], whose anti-diagonal t + s' = length - 1 + lag is
        # the gradient of that lag.
        M = torch.bmm(gt.transpose(0, 1), _batch_last(u).flip(0).permute(1, 2, 0))
        return du, _antidiagonal_sums(M)[:, u.shape[1] - 1 :]


def _differentiable_backward(g: Tensor, u: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients as torch operations: for second derivatives."""
    size, length = 2 * u.shape[1], u.shape[1]
    G, U = torch.fft.rfft(g, n=size, dim=1), torch.fft.rfft(u, n=size, dim=1)
    du = torch.fft.irfft(G * _spectrum(kernel).conj(), n=size, dim=1)[:, :length]
    dkernel = torch.fft.irfft((G * U.conj()).sum(0), n=size, dim=0)[:length].T
    return du, dkernel


def _spectrum(kernel: Tensor) -> Tensor:
    """(channels, length) to (frequencies, channels)."""
    return torch.fft.rfft(kernel, n=2 * kernel.shape[1]).T.contiguous()


def _chunks(u: Tensor) -> list[slice]:
    """Rows of the batch to transform at a time; on a GPU all of them."""
    batch, length, channels = u.shape
    rows = batch if u.is_cuda else max(1, _CHUNK // (length * channels))
    return [slice(start, start + rows) for start in range(0, batch, max(rows, 1))]


def _toeplitz(kernel: Tensor) -> Tensor:
    """(channels, length) to (channels, length, length), T[t, s] = kernel[t - s]."""
    length = kernel.shape[1]
    return F.pad(kernel.flip(1), (0, length - 1)).unfold(-1, length, 1).flip(1)


def _multiply(T: Tensor, ut: Tensor) -> Tensor:
    """(channels, t, s) times (s, channels, batch), written as (t, channels, batch)."""
    y = torch.empty_like(ut)
    torch.bmm(T, ut.transpose(0, 1), out=y.transpose(0, 1))
    return y


def _batch_last(u: Tensor) -> Tensor:
    batch, length, channels = u.shape
    return u.reshape(batch, length * channels).T.contiguous().view(length, channels, batch)


def _batch_first(ut: Tensor) -> Tensor:
    length, channels, batch = ut.shape
    return ut.view(length * channels, batch).T.contiguous().view(batch, length, channels)


def _antidiagonal_sums(M: Tensor) -> Tensor:
    """(channels, n, n) to (channels, 2n - 1), entry k the sum of M[t, s] over t + s = k."""
    channels, n, _ = M.shape
    padded = M.new_zeros(channels, n, 2 * n)
    padded[..., :n] = M
    # Read with rows one entry shorter, row t moves t places to the right.
    skewed = padded.view(channels, -1)[:, : n * (2 * n - 1)].view(channels, n, 2 * n - 1)
    return skewed.sum(1)
