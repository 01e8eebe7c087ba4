"""A layer simple enough that whole models can be written out by hand."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.core.config import settings
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.base import LayerConfig, SequenceLayer


@settings
class NeighbourConfig(LayerConfig):
    """Not registered: only these tests know it."""

    def build(self, *, d_model: int, length: int, noise: Noise) -> "Neighbour":
        del length
        return Neighbour(d_model, noise)


class Neighbour(SequenceLayer):
    """y[t] = W x[t] + V x[t - 1]: mixes channels and tokens."""

    def __init__(self, d_model, noise):
        super().__init__()
        self.d_model = d_model
        with global_stream(noise):
            self.here = nn.Linear(d_model, d_model, bias=False)
            self.before = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        return self.here(x) + self.before(F.pad(x, (0, 0, 1, -1)))

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        padded = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        return x @ self.here.weight.T + padded[:, :-1] @ self.before.weight.T

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> None:
        return None

    def roles(self):
        return {"before.weight": "dynamics"}


@pytest.fixture
def neighbour():
    return NeighbourConfig()
