"""FGSM: the formula, in both norms and from both starts."""

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.3)])
def test_is_the_formula(norm, eps, network):
    model, x, y = network
    x = x * 0.2 + 0.4  # the box is not active
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
    length = g.flatten(1).norm(dim=1)[:, None, None]
    expected = x + eps * (g.sign() if norm == "linf" else g / length)
    threat = Threat(norm=norm, eps=eps)
    found = FGSM()(model, x, y, threat=threat, noise=Noise(0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_random_start_is_that_of_fast_training(network):
    model, x, y = network
    noise = Noise(3, torch.arange(len(x)))
    z = (x + noise.fork("start", 0).uniform(like=x, low=-0.1, high=0.1)).clamp(0, 1)
    z.requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
    expected = torch.clamp(z.detach() + 0.125 * g.sign(), x - 0.1, x + 0.1).clamp(0, 1)
    attack = FGSM(start="uniform", step_size=1.25)
    found = attack(model, x, y, threat=Threat(eps=0.1), noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_labels_costs_and_refusals():
    assert FGSM().label == "fgsm"
    assert FGSM(start="uniform", loss="margin").label == "fgsm-uniform-margin"
    assert FGSM().passes(4) == (1, 1)
    with pytest.raises(ValueError, match="flat"):
        FGSM(loss="kl")
    assert FGSM(loss="kl", start="uniform").passes(4) == (2, 1)
