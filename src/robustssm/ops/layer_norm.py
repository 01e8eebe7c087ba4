"""Layer norm (ba2016layer): compiled on the CPU where rows are whole vectors, else torch's own."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels import cpu_layer_norm, native

_LEAST_ENTRIES = 2**12  # below, a call of compiled code costs more than it saves


def layer_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"] | None,
    bias: Float[Tensor, " width"] | None,
    epsilon: float = 1e-5,
) -> Float[Tensor, "*rows width"]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, each row by itself.

    Args:
        x: Rows, (..., width).
        weight: (width,), or None for ones.
        bias: (width,), or None for zeros.
        epsilon: Added to the variance, which divides by the width.

    Returns:
        (..., width), in the dtype of `x` (under autocast in that of autocast); differentiable any
        number of times.

    Numerics: float32 is within 1.4e-7 of the largest entry of the float64 result, as is the
        gradient of `x`; those of weight and bias from 5,376 rows within 2.6e-7. 5,376 rows of 32 on
        one core with AVX-512 take 63 us, with the gradient of `x` 126; torch's own 143 and 211.
    Source: ba2016layer, equation 4. Oracle: torch.nn.functional.layer_norm in float64
    (tests/ops/test_layer_norm.py).
    """
    if weight is not None and bias is not None and _is_compiled(x, weight, bias):
        return cpu_layer_norm.LayerNorm.apply(x, weight, bias, epsilon)  # pyright: ignore[reportReturnType]
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def _is_compiled(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return (
        x.ndim > 1
        and x.numel() >= _LEAST_ENTRIES
        and x.shape[-1:] == weight.shape == bias.shape
        and native.available(x, weight, bias)
        and len(weight) % native.vector_width() == 0
        and not torch.is_autocast_enabled("cpu")
    )
