"""Adaptive scaling (AdS, qi2024exploring section 4.2): y <- act(W y) * y after a layer's SSM.

`scale` is the text of the paper (version 1); `scale_shift` is its released code, which adds
act(V y) as well and gives both maps a bias.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import settings
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.linear import Linear

Activation = Literal["relu", "sigmoid", "tanh"]

_FUNCTIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
_NEUTRAL = {"relu": 1.0, "sigmoid": 30.0, "tanh": 30.0}  # act(_NEUTRAL) == 1 in float32


@settings
class AdaptiveScalingConfig:
    """Settings of adaptive scaling.

    `initial="torch"` is nn.Linear's default, as published; `initial="identity"` starts as the
    identity map y -> y (zero weights, a bias at which the activation is 1, and a shift that is 0)
    and so needs a bias.
    """

    activation: Activation = "relu"
    form: Literal["scale", "scale_shift"] = "scale"
    bias: bool = False
    initial: Literal["torch", "identity"] = "torch"

    def __post_init__(self) -> None:
        if self.initial == "identity" and not self.bias:
            raise ValueError(
                "`AdaptiveScalingConfig(initial='identity')` must have bias=True, as without a "
                "bias no weight makes act(W y) equal 1; got bias=False. Set bias=True or "
                "initial='torch'."
            )

    def build(self, *, d_model: int, noise: Noise) -> "AdaptiveScaling":
        """Makes the module in float32 on the CPU, drawing from `noise`."""
        return AdaptiveScaling(self, d_model=d_model, noise=noise)


class AdaptiveScaling(nn.Module):
    """y -> act(W y + b) * y, plus act(V y + c) in the form `scale_shift`.

    Source: qi2024exploring, section 4.2 (scale) and its released code (scale_shift).
    """

    def __init__(self, config: AdaptiveScalingConfig, *, d_model: int, noise: Noise):
        """Made by `AdaptiveScalingConfig.build`."""
        super().__init__()
        self.config = config
        with global_stream(noise):
            self.scale = Linear(d_model, d_model, bias=config.bias)
            shifted = config.form == "scale_shift"
            self.shift = Linear(d_model, d_model, bias=config.bias) if shifted else None
        if config.initial == "identity":
            self._start_as_identity()

    def forward(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Maps (..., d_model) to the same shape; positions are treated alike."""
        act = _FUNCTIONS[self.config.activation]
        scaled = act(self.scale(y)) * y
        return scaled if self.shift is None else scaled + act(self.shift(y))

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        self.scale.weight.zero_()
        self.scale.bias.fill_(_NEUTRAL[self.config.activation])
        if self.shift is not None:
            self.shift.weight.zero_()
            # act(0) = 0 for relu and tanh; sigmoid reaches 0 from far below.
            self.shift.bias.fill_(-30.0 if self.config.activation == "sigmoid" else 0.0)
