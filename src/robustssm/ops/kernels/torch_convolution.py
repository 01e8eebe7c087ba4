"""Causal convolution in torch operations: by the FFT, and by Toeplitz matrices.

Every form is a Function of u, the kernel, and what `prepare` makes of the kernel (no gradient).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

_CHUNK = 1 << 18  # entries of u transformed at a time: spectra stay in the cache, no page faults


class FFT(Function):
    """Real FFTs of twice the length, so that the circular convolution does not wrap.

    torch's own backward of rfft is a complex FFT of a zero-padded spectrum; by hand it is one more
    real FFT, as the adjoint of a convolution is a multiplication by the conjugate spectrum.
    """

    @staticmethod
    def prepare(kernel: Float[Tensor, "channels length"]) -> Tensor:
        """The spectrum, (frequencies, channels)."""
        return _spectrum(kernel)

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, spectrum: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel, spectrum)
        size = 2 * u.shape[1]
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        for rows in _chunks(u):
            product = torch.fft.rfft(u[rows], n=size, dim=1).mul_(spectrum)
            y[rows] = torch.fft.irfft(product, n=size, dim=1)[:, : u.shape[1]]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (u, kernel, spectrum) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return *plain_gradients(g, u, kernel), None
        size, length = 2 * u.shape[1], u.shape[1]
        for_u, for_kernel, _ = ctx.needs_input_grad
        conjugate = spectrum.conj_physical()
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
            return du, None, None
        return du, torch.fft.irfft(correlation, n=size, dim=0)[:length].T.contiguous(), None


class Toeplitz(Function):
    """One matrix product per channel, with T[t, s] = kernel[t - s], on (length, channels, batch).

    That layout is one matrix transposition away from (batch, length, channels), which torch does
    fast, unlike a general permutation.
    """

    @staticmethod
    def prepare(kernel: Float[Tensor, "channels length"]) -> Tensor:
        """The matrices, (channels, length, length)."""
        return _toeplitz(kernel)

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, T: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel, T)
        return _batch_first(_multiply(T, _batch_last(u)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (u, kernel, T) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():
            return *plain_gradients(g, u, kernel), None
        for_u, for_kernel, _ = ctx.needs_input_grad
        gt = _batch_last(g)
        du = _batch_first(_multiply(T.mT, gt)) if for_u else None
        if not for_kernel:
            return du, None, None
        # M[t, s'] = sum_b g[t] u[length - 1 - s'], whose anti-diagonal t + s' = length - 1 + lag is
        # the gradient of that lag.
        M = torch.bmm(gt.transpose(0, 1), _batch_last(u).flip(0).permute(1, 2, 0))
        return du, _antidiagonal_sums(M)[:, u.shape[1] - 1 :], None


def plain_gradients(
    g: Float[Tensor, "batch length channels"],
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "channels length"]]:
    """The gradients of u and kernel as torch operations: for second derivatives."""
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
