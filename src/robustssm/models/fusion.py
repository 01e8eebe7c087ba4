"""When the branch of a block can run as one compiled operation, and what that operation needs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from robustssm.layers.adaptive_scaling import AdaptiveScaling
from robustssm.layers.convolutional import ConvolutionalLayer
from robustssm.ops.residual_block import Dense, PreparedBlock, supports

if TYPE_CHECKING:
    from robustssm.models.block import Block

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fused_branch(block: "Block", h: Float[Tensor, "batch length d_model"]) -> PreparedBlock | None:
    """The branch as one operation on `h`, for a frozen block; None if its parts must be called.

    They must where parameters would get gradients, where somebody listens to them through hooks,
    under autocast, and where a part is of a kind that the operation does not know.
    """
    if h.dtype != torch.float32 or h.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    branch = block.prepared(h.shape[1])
    if branch is None or any(branch.hooks) or any(_everywhere()) or _drops(block.dropout):
        return None
    return branch.whole if supports(h, branch.whole.kernel) else None


class Branch(NamedTuple):
    """A branch as one operation."""

    whole: PreparedBlock
    hooks: tuple[Mapping[int, object], ...]
    """Where hooks of the parts would stand: these are asked at every call."""


def make_branch(block: "Block", length: int) -> Branch | None:
    """What `ops.residual_block` needs of a block; None if a part is of a kind it does not know."""
    config, layer, norm = block.config, block.layer, block.norm
    plain = config.activation in ("none", "gelu") and config.mixing in ("none", "linear")
    if not isinstance(layer, ConvolutionalLayer) or not plain:
        return None
    scaling, mixing = layer.scaling, block.mixing
    scale = None if scaling is None else scaling.scale
    if scaling is not None and scale is None:  # a shift alone
        return None
    has_norm = isinstance(norm, nn.LayerNorm)
    whole = PreparedBlock(
        kernel=layer.taps(length),
        norm=config.norm,
        gain=norm.weight.detach() if has_norm else None,
        offset=norm.bias.detach() if has_norm else None,
        epsilon=norm.eps if has_norm else 0.0,
        residual=config.residual,
        gate=None if scaling is None else scaling.config.activation,
        scale=None if scale is None else _dense(scale),
        shift=None if scaling is None else _shift(scaling),
        gelu=config.activation == "gelu",
        mixing=_dense(mixing) if isinstance(mixing, nn.Linear) else None,
        mixing_gelu=config.mixing_activation == "gelu",
    )
    inner = (part for part in block.modules() if part is not block)
    return Branch(whole, tuple(getattr(part, name) for part in inner for name in _HOOKS))


def _dense(linear: nn.Linear) -> Dense:
    return Dense.of(linear.weight, linear.bias)


def _shift(scaling: AdaptiveScaling) -> Dense | None:
    return None if scaling.shift is None else _dense(scaling.shift)


def _drops(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0


def _everywhere() -> tuple[Mapping[int, object], ...]:
    """Hooks of all modules."""
    return (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )
