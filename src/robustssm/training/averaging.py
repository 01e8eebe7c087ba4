"""Exponential moving average of weights: the model that is evaluated when `average` is set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights after a step; integer buffers are copied."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in model.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), 1 - decay)
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
