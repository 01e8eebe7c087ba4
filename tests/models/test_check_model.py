"""`check_model` finds each fault it is there to find."""

from contextlib import contextmanager

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import _registry, register, settings
from robustssm.core.rng import Noise, global_stream
from robustssm.models.classifier import ModelConfig
from robustssm.testing.models import check_model

SHAPE = (2, 4)


@pytest.fixture
def planted(monkeypatch):
    """A linear model with a fault, by name, in a registry of its own."""
    monkeypatch.setitem(_registry, "model", dict(_registry["model"]))

    @register("planted")
    @settings
    class Planted(ModelConfig):
        fault: str = "none"

        def build(self, *, shape: tuple[int, ...], num_classes: int, noise: Noise) -> nn.Module:
            return Faulty(self.fault, shape, num_classes, noise)

    return Planted


class Faulty(nn.Module):
    def __init__(self, fault, shape, num_classes, noise):
        super().__init__()
        self.fault, self.shape, self.calls = fault, shape, 0
        with global_stream(Noise(0) if fault == "ignores noise" else noise):
            self.first = nn.Linear(torch.Size(shape).numel(), 5)
            self.head = nn.Linear(5, num_classes)
        if fault == "draws elsewhere":
            Faulty.built = getattr(Faulty, "built", 0) + 1
            self.head.bias.data += Faulty.built
        if fault == "unused parameter":
            self.unused = nn.Parameter(torch.ones(3))
        self.hidden_state = noise.normal(num_classes)
        self.kept = None

    def embed(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        if x.shape[1:] != self.shape and self.fault != "any shape":
            raise ValueError(f"got {tuple(x.shape)}")
        return self.first(x.flatten(1)[:, :8])

    def classify(self, tokens: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        logits = self.head(torch.tanh(tokens))
        self.calls += 1
        if self.fault == "rows meet":
            logits = logits + logits.mean(0)
        if self.fault == "not finite":
            logits = logits / 0
        if self.fault == "depends on history":
            logits = logits + self.calls
        if self.fault == "state outside the state dict":
            logits = logits + self.hidden_state
        return logits.float() if self.fault == "only float32" else logits

    def forward(self, x):
        bend = 0.01 if self.fault == "forward is not the composition" else 0
        if self.fault == "stale cache" and self.kept is not None:
            return self.classify(x.flatten(1) @ self.kept.T + self.first.bias)
        return self.classify(self.embed(x)) + bend

    @contextmanager
    def frozen(self):
        self.kept = self.first.weight.detach() if self.kept is None else self.kept
        yield
        self.kept = self.kept.clone() if self.fault == "stale cache" else None


FAULTS = {
    "ignores noise": "other noise must give other parameters",
    "draws elsewhere": "equal noise must give equal values of head.bias",
    "unused parameter": "unused must reach the logits",
    "any shape": "must be refused",
    "rows meet": "row 0 of a batch must not depend on others",
    "not finite": "logits must be finite",
    "depends on history": "equal inputs must give equal logits",
    "state outside the state dict": "a state dict must carry the whole model",
    "only float32": "must compute in float64",
    "forward is not the composition": "must be classify",
    "stale cache": "inside `frozen` logits and input gradients must be as ever",
}


def test_a_model_without_fault_passes(planted):
    check_model(planted(), shape=SHAPE)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(planted, fault):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_model(planted(fault=fault), shape=SHAPE)
