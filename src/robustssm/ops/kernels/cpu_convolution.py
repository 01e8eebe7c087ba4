"""Causal convolution in compiled code: csrc/convolution_direct.h and csrc/convolution_fft.h."""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from robustssm.core.errors import violation
from robustssm.ops.kernels import native
from robustssm.ops.kernels.torch_convolution import plain_gradients

LONGEST = 128 * 128 * 4
"""Longest sequence that the compiled FFT takes."""

BESIDE_UP_TO = 2048
"""Longest sequence of which the compiled FFT transforms all channels of a vector side by side."""

_SIZES = ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128))
_PARTS = 8  # of the batch, each with a kernel gradient of its own: work for so many threads

_direct = native.function("causal_direct", "pppiiii")
_direct_lags = native.function("causal_direct_lags", "pppiiii")
_fft = native.function("causal_fft", "ppppppiiiiii")
_fft_spectrum = native.function("causal_fft_spectrum", "pppppiiii")
_fft_gradients = native.function("causal_fft_gradients", "ppppppppiiiiii")


def check(kernel: Float[Tensor, "channels length"], form: str) -> None:
    """Refuses what the compiled forms cannot do.

    Raises:
        ValueError: If there is no library, or the kernel is not float32 on the CPU, or too long.
    """
    subject = f"`causal_convolution(form='{form}')`"
    if not native.available(kernel):
        reason = native.state().reason.rstrip(".")
        reason = reason or f"got {kernel.dtype} on {kernel.device}"
        raise ValueError(f"{subject} needs a float32 kernel on the CPU; {reason}. Leave form out.")
    if form == "compiled_fft" and kernel.shape[1] > LONGEST:
        raise ValueError(
            violation(subject, f"have length <= {LONGEST}", kernel.shape[1], "Use form='fft'.")
        )


class Direct(Function):
    """The sum as it is written, in tiles that stay in registers."""

    @staticmethod
    def prepare(kernel: Float[Tensor, "channels length"]) -> Tensor:
        """The kernel as (length, channels)."""
        return kernel.T.contiguous()

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel, transposed)
        return _directly(u, transposed, adjoint=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (u, kernel, transposed) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return *plain_gradients(g, u, kernel), None
        for_u, for_kernel, _ = ctx.needs_input_grad
        du = _directly(g, transposed, adjoint=True) if for_u else None
        if not for_kernel:
            return du, None, None
        batch, length, channels = u.shape
        parts = min(batch, _PARTS)
        dk = u.new_empty(parts, length, channels)
        inputs = u.contiguous(), g.contiguous()
        _direct_lags(*inputs, dk, batch, length, channels, parts)
        return du, dk.sum(0).T.contiguous(), None


class Spectral(Function):
    """By transforms of so many complex points as the sequence is long, 16 channels at a time."""

    @staticmethod
    def prepare(kernel: Float[Tensor, "channels length"]) -> Tensor:
        """The spectrum, in the order in which the transform leaves it."""
        channels, length = kernel.shape
        n1, n2, *tables = plan(length)
        width, along = native.vector_width(), tables[2] is not None
        spectra = channels if along else math.ceil(channels / width)
        spectrum = kernel.new_empty(spectra, n1 * n2, 2, width)
        kernel = (kernel if along else kernel.T).contiguous()
        _fft_spectrum(kernel, *tables, spectrum, length, channels, n1, n2)
        return spectrum

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, spectrum: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel, spectrum)
        return _spectrally(u, spectrum, adjoint=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), (u, kernel, spectrum) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():
            return *plain_gradients(g, u, kernel), None
        for_u, for_kernel, _ = ctx.needs_input_grad
        if not for_kernel:
            return (_spectrally(g, spectrum, adjoint=True) if for_u else None), None, None
        batch, length, channels = u.shape
        n1, n2, *tables = plan(length)
        parts = min(batch, _PARTS)
        along = tables[2] is not None
        dk = u.new_empty(parts, *((channels, length) if along else (length, channels)))
        du = torch.empty_like(g, memory_format=torch.contiguous_format) if for_u else None
        inputs = u.contiguous(), g.contiguous()
        sizes = batch, length, channels, n1, n2, parts
        _fft_gradients(*inputs, spectrum, *tables, du, dk, *sizes)
        dk = dk[0] if parts == 1 else dk.sum(0)
        return du, (dk if along else dk.T.contiguous()), None


def _directly(u: Tensor, transposed: Tensor, *, adjoint: bool) -> Tensor:
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    _direct(u.contiguous(), transposed, y, *u.shape, int(adjoint))
    return y


def _spectrally(u: Tensor, spectrum: Tensor, *, adjoint: bool) -> Tensor:
    n1, n2, *tables = plan(u.shape[1])
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    _fft(u.contiguous(), spectrum, *tables, y, *u.shape, n1, n2, int(adjoint))
    return y


def plan(length: int) -> tuple[int, int, Tensor, Tensor, Tensor | None]:
    """Points of columns and rows, and tables: of the twist, of turns, and of turns along time."""
    return _plan(length, native.vector_width() if length > BESIDE_UP_TO else 1)


@functools.cache
def _plan(length: int, lanes: int) -> tuple[int, int, Tensor, Tensor, Tensor | None]:
    """With transforms of every `lanes`-th token."""
    n1, n2 = next(sizes for sizes in _SIZES if math.prod(sizes) * lanes >= length)
    size = n1 * n2
    twist = math.pi / (2 * size) * torch.arange(size, dtype=torch.float64)
    columns, rows = (torch.arange(n, dtype=torch.float64) for n in (n1, n2))
    turn = 2 * math.pi / size * torch.outer(columns, rows)
    twist, turn = (torch.stack([torch.cos(a), -torch.sin(a)], -1).float() for a in (twist, turn))
    if lanes == 1:
        return n1, n2, twist, turn, None
    frequency = (columns[:, None] + n1 * rows).flatten() + 0.25
    phase = 2 * math.pi / (size * lanes) * torch.outer(frequency, torch.arange(lanes).double())
    return n1, n2, twist, turn, torch.stack([torch.cos(phase), -torch.sin(phase)], 1).float()
