"""Linear maps of the last axis: compiled where the product is large enough, else torch's own.

In microseconds on one core with AVX-512, compiled / torch (MKL), autograd included; "frozen" is
forward and the gradient of x, "full" forward and all gradients:

| rows, inputs, outputs | forward | frozen | full |
|---|---|---|---|
| 512, 32, 32 (torch's is taken) | 28 / 17 | 52 / 48 | 71 / 70 |
| 1024, 2, 64 (columns of 34) | 15 / 9 | 64 / 82 | |
| 5376, 2, 64 (columns of 34) | 31 / 44 | 147 / 330 | |
| 1024, 32, 32 | 33 / 28 | 63 / 72 | 89 / 106 |
| 1024, 32, 128 | 60 / 87 | 117 / 195 | 174 / 310 |
| 12544, 3, 64 | 75 / 112 | 244 / 717 | 553 / 1627 |
| 8192, 128, 128 | 1217 / 2661 | 3017 / 5752 | 4258 / 8608 |
| 8192, 128, 256 | 2478 / 5297 | 5549 / 11214 | 8145 / 17119 |
| 25088, 64, 128 | 2283 / 4541 | 5587 / 9974 | 8165 / 15310 |
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels import cpu_dense, native

_LEAST_PRODUCTS = 2**20  # multiplications in all; below, what stands around them costs more,
_LEAST_RESULTS = 2**16  # unless so many sums are written, of however few products
_LEAST_ROWS = 32  # below, the weight is not used often enough to be worth laying out anew
_LEAST_INPUTS, _LEAST_OUTPUTS = 2, 8  # below, a register is mostly empty
_LEAST_WIDTH = 8  # of vectors; with 4 (no AVX2) half of what torch reaches


def dense(
    x: Float[Tensor, "*rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*rows outputs"]:
    """W x + b, for every row x.

    Differentiable any number of times. A weight or bias that needs no gradient costs none: detach
    it where only the gradient with respect to `x` is wanted. Compiled, the result does not depend
    on the number of threads, nor a row of it on the other rows.

    Args:
        x: Rows, (..., inputs).
        weight: W, (outputs, inputs).
        bias: b, (outputs,), or None.

    Returns:
        y, (..., outputs), in the dtype of `x` (under autocast in that of autocast).

    Numerics: float32 is within 1.3e-6 of the largest entry of the float64 result, the gradient of
        the weight from 25,000 rows within 1.8e-6.
    Oracle: torch.nn.functional.linear in float64 (tests/ops/test_dense.py).
    """
    if _is_large(x, weight) and _is_compiled(x, weight, bias):
        return cpu_dense.Dense.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return F.linear(x, weight, bias)


def _is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled product is the faster one."""
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return False  # torch's own says what does not fit
    outputs, inputs = weight.shape
    if inputs < _LEAST_INPUTS or outputs < _LEAST_OUTPUTS:
        return False
    rows = x.numel() // inputs
    enough = rows * inputs * outputs >= _LEAST_PRODUCTS or rows * outputs >= _LEAST_RESULTS
    return enough and rows >= _LEAST_ROWS


def _is_compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    given = (x, weight) if bias is None else (x, weight, bias)
    return (
        (bias is None or bias.shape == weight.shape[:1])
        and native.available(*given)
        and native.vector_width() >= _LEAST_WIDTH
        and not torch.is_autocast_enabled("cpu")
    )
