"""The moving average of weights against its recursion, the uniform one against the mean."""

import torch
from torch import nn

from robustssm.core.rng import Noise, global_stream
from robustssm.training.averaging import StochasticWeightAveraging, WeightAverage
from tests.training.tiny import epoch


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


def test_a_uniform_average_is_the_mean_from_its_start_on():
    model = linear(1, 1)
    average = StochasticWeightAveraging(start=0.5).build(model)
    for step, progress in enumerate((0.0, 0.25, 0.5, 0.75, 0.99), start=1):
        nn.init.constant_(model.weight, float(step))
        average.update(model, progress=progress)
        expected = {1: 1.0, 2: 2.0, 3: 3.0, 4: 3.5, 5: 4.0}[step]
        torch.testing.assert_close(average.values["weight"], torch.tensor([[expected]]))
    assert average.steps == 3


def test_a_uniform_average_goes_on_from_its_state():
    model = linear(3, 2)
    first, second = (StochasticWeightAveraging(start=0.0).build(model) for _ in range(2))
    for value in (1.0, 5.0):
        nn.init.constant_(model.weight, value)
        first.update(model)
    second.load(first.state())
    nn.init.constant_(model.weight, 9.0)
    second.update(model)
    torch.testing.assert_close(second.values["weight"], torch.full((2, 3), 5.0))


def test_the_loop_tells_how_far_training_is(problem):
    learner = problem.learner()
    learner.average = StochasticWeightAveraging(start=0.5).build(learner.model)
    seen = []
    for _ in range(2):
        for _ in epoch(problem, learner, epochs=2):
            seen.append(learner.model[0].weight.detach().clone())
    assert learner.average.steps == 3, "three of six batches begin in the second half"
    torch.testing.assert_close(learner.average.values["0.weight"], torch.stack(seen[3:]).mean(0))
