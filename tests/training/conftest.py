"""Fixtures: one update of an objective taken apart, and a small problem to train on."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.testing.attacks import ContractClassifier
from tests.training.tiny import Problem


class Outcome:
    """What one update leaves behind: loss, gradients, buffers and the random state of dropout."""

    def __init__(self, objective, *, dtype=torch.float32, autocast=False):
        self.model = ContractClassifier((2, 4, 4), noise=Noise(0)).to(dtype)
        self.model.train()
        x, y = Noise(1).uniform(8, 2, 4, 4, dtype=dtype), Noise(2).integers(8, high=4)
        noise, memory = Noise(3, torch.arange(8)), objective.memory(x, batch_size=8)
        with global_stream(Noise(4)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                (self.update,) = objective.updates(self.model, x, y, memory=memory, noise=noise)
            self.update.loss.backward()
            self.random = torch.random.get_rng_state()
        self.gradients = {n: p.grad for n, p in self.model.named_parameters()}
        self.buffers = dict(self.model.named_buffers())

    def assert_equals(self, other):
        assert torch.equal(self.update.loss, other.update.loss)
        for name, gradient in self.gradients.items():
            assert torch.equal(gradient, other.gradients[name]), name
        for name, buffer in self.buffers.items():
            assert torch.equal(buffer, other.buffers[name]), name
        assert torch.equal(self.random, other.random)


@pytest.fixture
def outcome():
    """The class of outcomes: `outcome(objective)` runs one update."""
    return Outcome


@pytest.fixture
def problem() -> Problem:
    """A small problem that trains in no time."""
    return Problem()
