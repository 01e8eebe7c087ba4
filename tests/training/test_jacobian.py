"""The Jacobian penalty: closed forms on linear models, its own gradient, its limit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.core.rng import Noise, global_stream
from robustssm.models.presets import modern
from robustssm.training.jacobian import JacobianPenalty
from robustssm.training.standard import Standard
from tests.training.tiny import classifier, examples, trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of", ["projection", "true_class"])
def test_at_weight_zero_it_is_standard_training_bit_for_bit(dtype, of, outcome):
    penalty = JacobianPenalty(weight=0.0, of=of)
    outcome(penalty, dtype=dtype).assert_equals(outcome(Standard(), dtype=dtype))
    trained(penalty, dtype=dtype).assert_equals(trained(Standard(), dtype=dtype))
    assert outcome(penalty, dtype=dtype).update.parts["squared_jacobian"] > 0


def linear(rows):
    with global_stream(Noise(0)):
        model = nn.Linear(5, 3).double()
    x, y = Noise(1).uniform(rows, 5, dtype=torch.float64), Noise(2).integers(rows, high=3)
    return model, x, y, Noise(3, torch.arange(rows))


def one(penalty, model, x, y, noise):
    (update,) = penalty.updates(model, x, y, memory={}, noise=noise)
    return update


def test_on_a_linear_model_the_true_class_has_the_norm_of_its_row():
    model, x, y, noise = linear(7)
    update = one(JacobianPenalty(weight=0.6, of="true_class"), model, x, y, noise)
    squared = model.weight[y].square().sum(1).mean()
    torch.testing.assert_close(update.parts["squared_jacobian"], squared.detach())
    expected = F.cross_entropy(model(x), y) + 0.3 * squared
    torch.testing.assert_close(update.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(update.loss, model.weight), torch.autograd.grad(expected, model.weight)
    )


def test_projections_estimate_the_frobenius_norm_without_bias():
    model, x, y, noise = linear(20_000)
    found = one(JacobianPenalty(weight=1.0), model, x, y, noise).parts["squared_jacobian"]
    torch.testing.assert_close(found, model.weight.detach().square().sum(), rtol=0.02, atol=0)


def test_the_norm_of_a_curved_model_is_that_of_its_jacobian():
    model, (x, y, noise) = classifier(disturbable=False), examples()
    update = one(JacobianPenalty(weight=1.0, of="true_class"), model, x, y, noise)
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z).sum(0), x)
    expected = jacobian[y, torch.arange(8)].flatten(1).square().sum(1).mean()
    torch.testing.assert_close(update.parts["squared_jacobian"], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("structure", ["s4", "s4d", "dss", "s5", "mega", "mamba"])
@pytest.mark.parametrize("of", ["projection", "true_class"])
def test_gradients_go_through_the_gradient_of_every_layer(structure, of):
    """Central differences of the penalty along a random direction of all parameters."""
    config = modern(structure, d_model=4, num_layers=1, d_state=4)
    model = config.build(shape=(6, 2), num_classes=3, noise=Noise(0)).double()
    x, y = Noise(1).uniform(3, 6, 2, dtype=torch.float64), Noise(2).integers(3, high=3)
    penalty, parameters = JacobianPenalty(weight=2.0, of=of), list(model.parameters())
    along = [Noise(5).fork(i).normal(like=p) for i, p in enumerate(parameters)]

    def loss():
        return one(penalty, model, x, y, Noise(3, torch.arange(3))).loss

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, along, strict=True))
    ends, step = [], 1e-5
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter += sign * step * direction
        ends.append(loss().detach())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)
