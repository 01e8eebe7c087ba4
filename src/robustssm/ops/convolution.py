"""Causal convolution of every channel with its own kernel: directly, by FFT, by Toeplitz matrices.

Compiled, on one core with AVX-512, in nanoseconds per entry of u, forward / gradient of u / both
gradients ("torch": the better of its forms below), float32:

| batch, length, channels | sums | FFT | torch |
|---|---|---|---|
| 16, 64, 32 | 0.7 / 1.2 / 2.0 | | 4.3 / 4.8 / 9.4 |
| 128, 196, 64 | 1.3 / 1.5 / 3.0 | | 6.4 / 6.7 / 11.3 |
| 32, 784, 128 | 3.9 / 4.0 / 8.2 | 1.5 / 1.5 / 2.7 | 7.6 / 7.3 / 15.0 |
| 2, 1024, 128 | 4.8 / 5.0 / 11.3 | 1.2 / 1.2 / 2.8 | 8.4 / 9.5 / 19.5 |
| 16, 1024, 128 | 5.1 / 5.1 / 10.6 | 1.4 / 1.4 / 2.7 | 9.1 / 9.2 / 16.7 |
| 4, 4096, 128 | | 1.6 / 1.7 / 3.8 | 10.7 / 10.8 / 17.7 |
| 1, 16384, 128 | | 1.9 / 1.9 / 4.0 | 11.7 / 12.4 / 26.2 |
| 1, 65536, 128 | | 2.6 / 4.2 / 6.3 | 32.9 / 38.5 / 77.2 |

Without compiled kernels, forward and all gradients / forward and that of u on another such core
("autograd": torch.fft on transposed views):

| batch, length, channels | autograd | FFT here | Toeplitz here |
|---|---|---|---|
| 64, 32, 64 | 16 / 17 | 17 / 13 | 11 / 8 |
| 256, 64, 128 | 36 / 32 | 18 / 13 | 14 / 10 |
| 256, 196, 128 | 68 / 58 | 21 / 16 | 32 / 18 |
| 256, 784, 128 | 96 / 66 | 26 / 19 | |
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels import (
    cpu_convolution,
    native,
    torch_convolution,
    triton_convolution,
)

Form = Literal["compiled_direct", "compiled_fft", "fft", "toeplitz", "triton"]

TOEPLITZ_UP_TO = 64
"""Longest sequence that Toeplitz matrices serve better than torch's FFT (table above)."""

DIRECT_UP_TO = 160
"""Longest sequence that the compiled sum of products serves better than the compiled FFT."""

_FORMS = {
    "compiled_direct": cpu_convolution.Direct,
    "compiled_fft": cpu_convolution.Spectral,
    "fft": torch_convolution.FFT,
    "toeplitz": torch_convolution.Toeplitz,
}


@dataclass(frozen=True, eq=False)
class PreparedKernel:
    """A kernel, how it will be used, and what that needs of it: made once for many convolutions."""

    kernel: Float[Tensor, "channels length"]
    form: Form
    aid: Tensor
    """Its spectrum or its matrices, without gradient; the gradient takes the way of `kernel`."""


def prepared_kernel(
    kernel: Float[Tensor, "channels length"], *, form: Form | None = None
) -> PreparedKernel:
    """Makes what `causal_convolution` would otherwise make of the kernel at every call.

    Args:
        kernel: One kernel per channel, (channels, length); later changes of it go unseen.
        form: How it will be used; by default the faster one for this length, dtype and device.

    Raises:
        ValueError: If that form cannot take this kernel here.
    """
    form = form or _fastest(kernel)
    if form.startswith("compiled"):
        cpu_convolution.check(kernel, form)
    if form == "triton":  # its tiles are made of the kernel as they are needed
        return PreparedKernel(kernel, form, kernel.detach())
    with torch.no_grad():
        return PreparedKernel(kernel, form, _FORMS[form].prepare(kernel.detach()))


def causal_convolution(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"] | PreparedKernel,
    *,
    form: Form | None = None,
) -> Float[Tensor, "batch length channels"]:
    """y[b, t, c] = sum over s <= t of kernel[c, t - s] u[b, s, c].

    Differentiable any number of times. A kernel that needs no gradient costs none: detach it where
    only the gradient with respect to `u` is wanted.

    Args:
        u: Sequences, (batch, length, channels), float32 or float64.
        kernel: One kernel per channel, (channels, length), in the dtype of `u`, or such a one
            prepared.
        form: How it is computed; by default the faster one for this length. Compiled forms are for
            float32 on a CPU; "triton" is for CUDA and must be asked for, as it has not been
            measured against torch's FFT there.

    Returns:
        y, (batch, length, channels).

    Raises:
        ValueError: If that form cannot take this kernel here.

    Numerics: relative to max|y|, float32 is within 5e-7 (both FFTs) and 2e-6 (sums of products) of
        float64 for lengths up to 1024.
    """
    if not isinstance(kernel, PreparedKernel):
        kernel = prepared_kernel(kernel, form=form)
    if kernel.form == "triton":
        return triton_convolution.causal_convolution(u, kernel.kernel)
    y = _FORMS[kernel.form].apply(u, kernel.kernel, kernel.aid)
    return y  # pyright: ignore[reportReturnType]


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


def _fastest(kernel: Tensor) -> Form:
    length = kernel.shape[1]
    if native.available(kernel):
        if length <= DIRECT_UP_TO:
            return "compiled_direct"
        if length <= cpu_convolution.LONGEST:
            return "compiled_fft"
    return "toeplitz" if length <= TOEPLITZ_UP_TO else "fft"
