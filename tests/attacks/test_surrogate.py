"""The losses to climb: values, gradients per example, and the one clean pass of kl."""

import pytest
import torch

from robustssm.attacks.access import Access
from robustssm.attacks.surrogate import Surrogate
from robustssm.ops import divergence


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "kl"])
def test_the_gradient_of_an_example_is_its_own(loss, network):
    model, x, y = network
    points = (x + 0.01).clamp(0, 1)
    surrogate = Surrogate(loss, Access(model), x, y)
    value, gradient = surrogate.climb(points)
    for row in (0, 7):
        z = points[row : row + 1].clone().requires_grad_()
        own = {
            "cross_entropy": lambda logits, row=row: divergence.cross_entropy(logits, y[row, None]),
            "margin": lambda logits, row=row: divergence.margin(logits, y[row, None]),
            "dlr": lambda logits, row=row: divergence.dlr(logits, y[row, None]),
            "kl": lambda logits, row=row: divergence.kl(model(x[row, None]).detach(), logits),
        }[loss](model(z))
        (expected,) = torch.autograd.grad(own, z)
        torch.testing.assert_close(gradient[row : row + 1], expected, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(value.loss[row : row + 1], own.detach(), rtol=1e-9, atol=1e-12)
    assert not value.loss.requires_grad
    again = surrogate.value(points)
    torch.testing.assert_close(again.loss, value.loss)
    assert torch.equal(again.wrong, value.wrong)


def test_selecting_rows_keeps_the_clean_prediction(network):
    model, x, y = network
    calls = []

    def spy(z):
        calls.append(len(z))
        return model(z)

    surrogate = Surrogate("kl", Access(spy), x, y)
    rows = torch.tensor([5, 2])
    some, _ = surrogate.select(rows).climb(x[rows] + 0.1)
    whole, _ = surrogate.climb(x + 0.1)
    torch.testing.assert_close(some.loss, whole.loss[rows])
    assert calls == [len(x), 2, len(x)]
