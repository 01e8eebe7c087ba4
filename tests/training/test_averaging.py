"""The moving average of weights against its recursion."""

import torch
from torch import nn

from robustssm.core.rng import Noise, global_stream
from robustssm.training.averaging import WeightAverage


def linear(inputs: int, outputs: int) -> nn.Linear:
    with global_stream(Noise(0)):
        return nn.Linear(inputs, outputs, bias=False)


def test_follows_its_recursion_with_warm_up():
    model = linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    average = WeightAverage(model, decay=0.5)
    expected = 2.0
    for step in range(1, 8):
        nn.init.constant_(model.weight, float(step))
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.values["weight"], torch.tensor([[expected]]))


def test_applied_puts_the_models_own_weights_back():
    model = linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    own = model.weight.detach().clone()
    average.values["weight"].zero_()
    with average.applied(model):
        assert not model.weight.any()
    assert torch.equal(model.weight, own)


def test_state_round_trip():
    model = linear(3, 2)
    first, second = WeightAverage(model, 0.9), WeightAverage(linear(3, 2), 0.9)
    first.update(model)
    second.load(first.state())
    assert second.steps == 1
    assert torch.equal(first.values["weight"], second.values["weight"])
