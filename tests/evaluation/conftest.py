"""A rugged network with examples right and wrong, in float64."""

import pytest
import torch

from robustssm.core.rng import Noise


class Rugged(torch.nn.Module):
    """A network with two hidden layers whose loss has local maxima within reach."""

    def __init__(self):
        super().__init__()
        self.first = 5 * Noise(0).normal(12, 32, dtype=torch.float64) / 12**0.5
        self.second = Noise(1).normal(32, 4, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.first - self.first.sum(0) / 2) @ self.second


@pytest.fixture
def network():
    """Model, inputs and labels, of which one in five is wrong."""
    model = Rugged()
    x = Noise(2).uniform(130, 3, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return model, x, y
