"""Averages of weights, moving or uniform: the model that is evaluated when `average` is set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import settings


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights after every step, warmed up as (1 + n) /
    (10 + n).

    Source: izmailov2018averaging for the use of averages; the warm-up is the usual one of moving
    averages.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Starts at the present weights.

        Args:
            model: The model whose floating-point state is averaged.
            decay: In (0, 1).
        """
        self.decay = decay
        self.steps = 0
        self.values = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def update(self, model: nn.Module, *, progress: float = 1.0) -> None:
        """Takes in the weights after a step; integer buffers are copied.

        Args:
            model: After the step.
            progress: How far training was at its batch, in [0, 1].
        """
        del progress
        self.steps += 1
        self._move(model, 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def _move(self, model: nn.Module, share: float) -> None:
        """Goes the given share of the way to the model's weights."""
        for name, tensor in model.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), share)
            else:
                average.copy_(tensor)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Runs the enclosed lines with the averaged weights in the model."""
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {**self.values, "": torch.tensor(self.steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.steps = int(state[""])
        for name, tensor in self.values.items():
            tensor.copy_(state[name])


class UniformWeightAverage(WeightAverage):
    """The mean of the weights after every step from a given share of training on.

    Before that it is the weights themselves. Statistics of batch normalisation are averaged like
    weights, where the source computes them anew from the data.

    Source: izmailov2018averaging, section 3; after every step, where it averages once a cycle.
    """

    def __init__(self, model: nn.Module, start: float):
        """Starts at the present weights.

        Args:
            model: The model whose floating-point state is averaged.
            start: Share of training, in [0, 1).
        """
        super().__init__(model, decay=0.0)
        self.start = start

    def update(self, model: nn.Module, *, progress: float = 1.0) -> None:
        """Takes in the weights after a step; arguments as `WeightAverage.update`."""
        if progress >= self.start:
            self.steps += 1
        self._move(model, 1 / max(self.steps, 1))


@settings
class StochasticWeightAveraging:
    """Settings of a `UniformWeightAverage`."""

    start: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of training from which on weights are averaged."""

    def build(self, model: nn.Module) -> UniformWeightAverage:
        """Makes the average, which starts at the model's present weights."""
        return UniformWeightAverage(model, self.start)
