"""When the branch of a block can run as one compiled operation, and what that operation needs."""

from typing import TYPE_CHECKING

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
    if _listened_to(block) or _drops(block.dropout):
        return None
    prepared = block.prepared(h.shape[1])
    return prepared if prepared is not None and supports(h, prepared.kernel) else None


def make_branch(block: "Block", length: int) -> PreparedBlock | None:
    """What `ops.residual_block` needs of a block; None if a part is of a kind it does not know."""
    config, layer, norm = block.config, block.layer, block.norm
    plain = config.activation in ("none", "gelu") and config.mixing in ("none", "linear")
    if not isinstance(layer, ConvolutionalLayer) or not plain:
        return None
    scaling, mixing = layer.scaling, block.mixing
    has_norm = isinstance(norm, nn.LayerNorm)
    return PreparedBlock(
        kernel=layer.taps(length),
        norm=config.norm,
        gain=norm.weight.detach() if has_norm else None,
        offset=norm.bias.detach() if has_norm else None,
        epsilon=norm.eps if has_norm else 0.0,
        residual=config.residual,
        gate=None if scaling is None else scaling.config.activation,
        scale=None if scaling is None else _dense(scaling.scale),
        shift=None if scaling is None else _shift(scaling),
        gelu=config.activation == "gelu",
        mixing=_dense(mixing) if isinstance(mixing, nn.Linear) else None,
        mixing_gelu=config.mixing_activation == "gelu",
    )


def _dense(linear: nn.Linear) -> Dense:
    return Dense.of(linear.weight, linear.bias)


def _shift(scaling: AdaptiveScaling) -> Dense | None:
    return None if scaling.shift is None else _dense(scaling.shift)


def _drops(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0


def _listened_to(block: nn.Module) -> bool:
    """Whether a hook waits for one of the parts, or for all modules."""
    everywhere = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    if any(getattr(torch_module, name) for name in everywhere):
        return True
    inner = (part for part in block.modules() if part is not block)
    return any(getattr(part, name) for part in inner for name in _HOOKS)
