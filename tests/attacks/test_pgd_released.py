"""The released PGD: its algorithm written out, and what is wrong with it, shown."""

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks.pgd import PGD
from robustssm.attacks.pgd_released import PGDReleased
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops import divergence


def test_is_the_released_algorithm(network):
    model, x, y = network
    eps, alpha = 0.3, 0.04
    noise = Noise(7, torch.arange(len(x)))
    delta = Noise(7, torch.arange(len(x))).uniform(like=x, low=-eps, high=eps)
    base = torch.clamp(x + delta, 0, 1)
    for _ in range(10):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(
            F.cross_entropy(model(torch.clamp(base + delta, 0, 1)), y), delta
        )
        delta = torch.clamp(delta.detach() + alpha * g.sign(), -eps, eps)
    expected = torch.clamp(x + delta, 0, 1)
    attack = PGDReleased(steps=10, step_size=alpha / eps)
    found = attack(model, x, y, threat=Threat(eps=eps), noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_its_gradients_are_taken_up_to_two_eps_away(network):
    model, x, y = network
    eps, furthest = 0.2, {}
    for attack in (PGDReleased(steps=10), PGD(steps=10, keep="last")):
        distances = []

        def spy(z, distances=distances):
            distances.append(float((z - x).abs().max().detach()))
            return model(z)

        found = attack(spy, x, y, threat=Threat(eps=eps), noise=Noise(7, torch.arange(len(x))))
        furthest[attack.name] = max(distances)
        assert (found - x).abs().max() <= eps * (1 + 1e-6), "what it returns is in the ball"
    assert furthest["pgd"] <= eps * (1 + 1e-6)
    assert 1.5 * eps < furthest["pgd_released"] <= 2 * eps * (1 + 1e-6)


def test_it_overstates_robustness(network):
    """At equal eps, steps and step size it fools fewer examples than PGD does."""
    model, x, y = network
    fooled = {}
    for attack in (PGDReleased(steps=10), PGD(steps=10, keep="last")):
        noise = Noise(7, torch.arange(len(x)))
        found = attack(model, x, y, threat=Threat(eps=0.06), noise=noise)
        fooled[attack.name] = int(divergence.wrong(model(found), y).sum())
    assert fooled["pgd_released"] < fooled["pgd"]


def test_other_norms_are_refused(network):
    model, x, y = network
    with pytest.raises(Inapplicable, match="norm='linf'"):
        PGDReleased()(model, x, y, threat=Threat(norm="l2", eps=0.1), noise=Noise(0))


def test_label():
    assert PGDReleased(steps=10).label == "pgd_released-10"
