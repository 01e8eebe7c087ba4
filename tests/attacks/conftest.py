"""Linear models, whose worst case under linf and l2, cut by a box, is known in closed form."""

import pytest
import torch
from scipy.optimize import brentq

from robustssm.core.rng import Noise

D = 8


class Linear:
    """logits = W x + b with two classes, or with four of which two can never win.

    The two idle classes repeat the weights of class 0 with low biases, so that the gradient of
    every loss is along W[1] - W[0] and the optimum of the four-class problem is closed as well.
    """

    def __init__(self, seed: int, classes: int, *, active: bool):
        noise = Noise(seed)
        self.w = noise.normal(2, D, dtype=torch.float64)
        bias = noise.normal(2, std=0.1, dtype=torch.float64)
        self.b = bias - self.w.sum(1) / 2  # balanced in the middle of the box
        if classes == 4:
            self.w = torch.cat((self.w, self.w[:1], self.w[:1]))
            self.b = torch.cat((self.b, self.b[:1] - 3, self.b[:1] - 4))
        self.classes = classes
        low, high = (0.0, 1.0) if active else (0.4, 0.6)
        self.x = noise.uniform(5, D, low=low, high=high, dtype=torch.float64)
        if active:
            self.x[:, ::3] = self.x[:, ::3].round()  # on the boundary
        self.y = torch.zeros(5, dtype=torch.int64)

    def __call__(self, x):
        return x @ self.w.T + self.b

    @property
    def direction(self):
        return self.w[1] - self.w[0]

    def rise(self, x_adv):
        """How much the margin of class 1 over class 0 rose."""
        return (x_adv - self.x) @ self.direction

    def largest_rise(self, norm, eps):
        """The most it can rise within eps and the box [0, 1]."""
        if norm == "linf":
            best = (self.x + eps * self.direction.sign()).clamp(0, 1)
            return self.rise(best)
        return torch.stack([self._largest_l2(x, eps) for x in self.x])

    def _largest_l2(self, x, eps):
        """Maximisers are clip(x + t w, 0, 1) - x with the t at which they are eps long."""

        def step(t):
            return (x + t * self.direction).clamp(0, 1) - x

        t = brentq(lambda t: float(step(t).norm()) - eps, 0, 100, xtol=1e-15, rtol=1e-14)
        return step(t) @ self.direction


@pytest.fixture
def linear():
    """The class of linear problems."""
    return Linear


class Rugged(torch.nn.Module):
    """A network whose loss has many local maxima within reach, so that starts matter; float64."""

    def __init__(self):
        super().__init__()
        self.first = 6 * Noise(0).normal(12, 32, dtype=torch.float64) / 12**0.5
        self.second = Noise(1).normal(32, 4, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.first - self.first.sum(0) / 2) @ self.second


@pytest.fixture
def network():
    """A small network in eval mode, inputs of which all are right, and their classes; float64."""
    model = Rugged().eval()
    x = Noise(2).uniform(60, 3, 4, dtype=torch.float64)
    return model, x, model(x).argmax(1)
