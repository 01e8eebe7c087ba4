"""Adaptive scaling (AdS, qi2024exploring section 4.2): y <- act(W y) * y after a layer's SSM.

`scale` is the text of the paper (version 1); `scale_shift` is its released code, which adds
act(V y) as well and gives both maps a bias. `shift` alone and maps that are not trained are
controls: they tell what the product, the sum and the training of AdS are each worth.
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
    and so needs a bias, except in the form `shift` with an activation that is 0 at 0.
    """

    activation: Activation = "relu"
    form: Literal["scale", "scale_shift", "shift"] = "scale"
    bias: bool = False
    initial: Literal["torch", "identity"] = "torch"
    trainable: bool = True
    """False: W, V and their biases keep their initial draws, as buffers."""

    def __post_init__(self) -> None:
        neutral = self.form == "shift" and self.activation != "sigmoid"
        if self.initial == "identity" and not self.bias and not neutral:
            raise ValueError(
                "`AdaptiveScalingConfig(initial='identity')` must have bias=True, as without a "
                "bias no weight makes act(W y) equal 1; got bias=False. Set bias=True or "
                "initial='torch'."
            )

    def build(self, *, d_model: int, noise: Noise) -> "AdaptiveScaling":
        """Makes the module in float32 on the CPU, drawing from `noise`."""
        return AdaptiveScaling(self, d_model=d_model, noise=noise)


class AdaptiveScaling(nn.Module):
    """y -> act(W y + b) * y + act(V y + c): the first summand in the form `scale`, both in
    `scale_shift`, and y + act(V y + c) in `shift`.

    Source: qi2024exploring, section 4.2 (scale) and its released code (scale_shift).
    """

    def __init__(self, config: AdaptiveScalingConfig, *, d_model: int, noise: Noise):
        """Made by `AdaptiveScalingConfig.build`."""
        super().__init__()
        self.config = config
        with global_stream(noise):
            scaled, shifted = config.form != "shift", config.form != "scale"
            self.scale = Linear(d_model, d_model, bias=config.bias) if scaled else None
            self.shift = Linear(d_model, d_model, bias=config.bias) if shifted else None
        if config.initial == "identity":
            self._start_as_identity()
        if not config.trainable:
            for part in (self.scale, self.shift):
                if part is not None:
                    _fix(part)

    def forward(self, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Maps (..., d_model) to the same shape; positions are treated alike."""
        act = _FUNCTIONS[self.config.activation]
        scaled = y if self.scale is None else act(self.scale(y)) * y
        return scaled if self.shift is None else scaled + act(self.shift(y))

    @torch.no_grad()
    def _start_as_identity(self) -> None:
        activation = self.config.activation
        # act(0) = 0 for relu and tanh; sigmoid reaches 0 from far below.
        zero = -30.0 if activation == "sigmoid" else 0.0
        for part, bias in ((self.scale, _NEUTRAL[activation]), (self.shift, zero)):
            if part is not None:
                part.weight.zero_()
                if part.bias is not None:
                    part.bias.fill_(bias)


def _fix(linear: nn.Linear) -> None:
    """Turns weight and bias into buffers, which no optimiser sees and every state dict holds."""
    for name, parameter in list(linear.named_parameters(recurse=False)):
        delattr(linear, name)
        linear.register_buffer(name, parameter.detach())
