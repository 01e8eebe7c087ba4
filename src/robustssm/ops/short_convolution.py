"""Causal convolution of every channel with a few taps, then SiLU: as Mamba has before its scan."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import violation
from robustssm.ops.kernels import cpu_short_convolution, native


def short_convolution(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "batch length channels"]:
    """y[t] = silu(bias + sum_j weight[j] x[t - taps + 1 + j]), zeros before the first step.

    Differentiable any number of times. Compiled for float32 on a CPU; then backward keeps x alone,
    which may be some columns of wider rows.

    Args:
        x: Sequences, (batch, length, channels).
        weight: Taps of every channel, the one for the present step last, (channels, taps).
        bias: Added to the sum, (channels,).

    Returns:
        y, (batch, length, channels), in the dtype of `x`.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics: in float32 within 1e-6 of the largest entry of the float64 result, gradients too.
    Source: gu2023mamba, section 3.4.
    Oracle: `short_convolution_reference` (tests/ops/test_short_convolution.py).
    """
    if weight.ndim != 2 or bias.shape != x.shape[2:] or len(weight) != x.shape[2]:
        must = f"have shapes (channels, taps) and (channels,) for x of shape {tuple(x.shape)}"
        got = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(violation("`short_convolution(weight=..., bias=...)`", must, got))
    few = weight.shape[1] <= cpu_short_convolution.MOST_TAPS
    if not (few and native.available(x, weight, bias)):
        return _composed(x, weight, bias)
    y = cpu_short_convolution.ShortConvolution.apply(x, weight, bias, _composed)
    return y  # pyright: ignore[reportReturnType]


def short_convolution_reference(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "batch length channels"]:
    """The sum as it is written."""
    taps, outputs = weight.shape[1], []
    for t in range(x.shape[1]):
        seen = x[:, max(0, t - taps + 1) : t + 1]
        sums = (seen * weight[:, taps - seen.shape[1] :].T).sum(1) + bias
        outputs.append(sums / (1 + torch.exp(-sums)))
    return torch.stack(outputs, 1)


def _composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In torch operations, differentiable any number of times.

    torch's two-dimensional convolution reads channels innermost as they lie, three to five times as
    fast as its one-dimensional one.
    """
    padded = F.pad(x, (0, 0, weight.shape[1] - 1, 0))
    image = rearrange(padded, "batch length channels -> batch channels 1 length")
    taps = rearrange(weight, "channels taps -> channels 1 1 taps")
    y = F.conv2d(image, taps, bias, groups=len(weight))
    return F.silu(rearrange(y, "batch channels 1 length -> batch length channels"))
