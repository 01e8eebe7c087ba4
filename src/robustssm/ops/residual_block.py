"""A whole residual block around a convolution, for attacks: forward and back to its input only.

Fused, activations pass through the caches of one core once each way, example by example; torch
reads and writes them in main memory at every part. Parameters are prepared and get no gradient.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.convolution import PreparedKernel, causal_convolution
from robustssm.ops.kernels import cpu_residual_block

Gate = Literal["relu", "sigmoid", "tanh"]

_GATES = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


@dataclass(frozen=True, eq=False)
class Dense:
    """x -> W x + b, with W as it multiplies rows from the right, both ways."""

    weight: Float[Tensor, "outputs inputs"]
    transposed: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"] | None

    @classmethod
    def of(
        cls, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
    ) -> "Dense":
        """Prepares the weight and bias of a linear map."""
        weight = weight.detach().contiguous()
        return cls(weight, weight.T.contiguous(), None if bias is None else bias.detach())

    def __call__(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """W x + b."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedBlock:
    """out = h + mixing(gelu(scaled(k * norm(h)))), or with the norm after the sum.

    scaled(y) = gate(scale(y)) y + gate(shift(y)). What is None or False is left out.
    """

    kernel: PreparedKernel
    """Of the convolution, the skip D in its first tap."""
    norm: Literal["pre", "post", "none"]
    gain: Float[Tensor, " channels"] | None
    """Weight of the layer norm, and its bias: None where there is no norm."""
    offset: Float[Tensor, " channels"] | None
    epsilon: float
    residual: bool
    gate: Gate | None
    scale: Dense | None
    shift: Dense | None
    gelu: bool
    mixing: Dense | None
    mixing_gelu: bool


def residual_block(
    h: Float[Tensor, "batch length channels"], block: PreparedBlock
) -> Float[Tensor, "batch length channels"]:
    """Runs the block in compiled code (`supports`), differentiable in `h` alone.

    Args:
        h: Sequences, (batch, length, channels), float32 on the CPU.
        block: What is done with them.

    Returns:
        (batch, length, channels).

    Numerics: as `residual_block_reference` in float32, relative to the largest entry within 2e-6.
    Oracle: `residual_block_reference` in float64 (tests/ops/test_residual_block.py).
    """
    return cpu_residual_block.Block.apply(h, block, residual_block_reference)  # pyright: ignore[reportReturnType]


def supports(h: Float[Tensor, "batch length channels"], kernel: PreparedKernel) -> bool:
    """Whether `residual_block` can take these sequences and this kernel."""
    return cpu_residual_block.supports(h, kernel.form)


def residual_block_reference(
    h: Float[Tensor, "batch length channels"], block: PreparedBlock
) -> Float[Tensor, "batch length channels"]:
    """The same in torch operations, part by part."""

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], block.gain, block.offset, block.epsilon)

    z = causal_convolution(norm(h) if block.norm == "pre" else h, block.kernel)
    if block.gate is not None and block.scale is not None:
        gate = _GATES[block.gate]
        scaled = gate(block.scale(z)) * z
        z = scaled if block.shift is None else scaled + gate(block.shift(z))
    if block.gelu:
        z = F.gelu(z)
    if block.mixing is not None:
        z = block.mixing(z)
    if block.mixing_gelu:
        z = F.gelu(z)
    out = h + z if block.residual else z
    return norm(out) if block.norm == "post" else out
