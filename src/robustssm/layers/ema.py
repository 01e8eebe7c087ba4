"""Mega's moving average by itself (ma2023mega): a control that keeps the state, not attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.observation import observe
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, LayerConfig, Role, SequenceLayer
from robustssm.layers.moving_average import MovingAverage
from robustssm.ops import recurrence as recurrences
from robustssm.ops.recurrence import Recurrence


@register("ema")
@settings
class EMAConfig(LayerConfig):
    """Settings of a moving average: the bare map, without norm, residual or activation.

    Source: ma2023mega, section 3.1, and its released code, which adds the skip.
    """

    d_state: Annotated[int, Field(ge=1)] = 16
    """Averages per channel and direction."""
    bidirectional: bool = True
    """As in Mega; False: only the tokens so far."""
    scaling: AdaptiveScalingConfig | None = None

    def build(self, *, d_model: int, length: int, noise: Noise) -> SequenceLayer:
        """Makes the layer in float32 on the CPU; any `length` gives the same one."""
        del length
        made = EMA if self.bidirectional else CausalEMA
        return made(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Both ways, and causal with adaptive scaling."""
        scaling = AdaptiveScalingConfig(activation="tanh")
        return cls(), cls(bidirectional=False, d_state=3, scaling=scaling)


class _EMALayer(SequenceLayer):
    def __init__(self, config: EMAConfig, *, d_model: int, noise: Noise):
        """Made by `EMAConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        self.average = MovingAverage(
            d_model=d_model,
            d_state=config.d_state,
            directions=2 if config.bidirectional else 1,
            noise=noise.fork("average"),
        )
        self.scaling = None
        if config.scaling is not None:
            self.scaling = config.scaling.build(d_model=d_model, noise=noise.fork("scaling"))

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        y = observe(self, "ssm", x, self.average(x))
        return y if self.scaling is None else observe(self, "ads", y, self.scaling(y))

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """The averages with their skip."""
        first, *rest = self.average.systems(torch.promote_types(x.dtype, torch.float32))
        return replace(first, backward=rest[0] if rest else None)

    def roles(self) -> Mapping[str, Role]:
        """delta, alpha and beta are dynamics, the skip a gain."""
        dynamics = ("average.delta", "average.alpha", "average.beta")
        return {**dict.fromkeys(dynamics, "dynamics"), "average.omega": "gain"}

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.scaling is None else self.scaling(y)


class EMA(_EMALayer):
    """Averages in both directions.

    Source: ma2023mega, section 3.1.
    """

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """The recurrence, step by step both ways."""
        return self._scaled(recurrences.run(self.recurrence(x), x))


class CausalEMA(_EMALayer, CausalLayer):
    """Averages of the tokens so far.

    Source: ma2023mega, section 3.1.
    """

    def initial_state(self, batch_size: int) -> tuple[Tensor, Recurrence]:
        """Averages of zero, and the system that later steps will run."""
        system = self.average.systems(torch.promote_types(self._dtype, torch.float32))[0]
        token = self.average.omega.new_zeros(batch_size, self.d_model)
        return recurrences.initial_state(system, token), system

    def step(
        self, x: Float[Tensor, "batch d_model"], state: tuple[Tensor, Recurrence]
    ) -> tuple[Float[Tensor, "batch d_model"], tuple[Tensor, Recurrence]]:
        """One time step."""
        h, system = state
        y, h = recurrences.step(system, h, x)
        return self._scaled(y), (h, system)

    @property
    def _dtype(self) -> torch.dtype:
        return self.average.omega.dtype
