"""Auto-PGD where the worst case is known in closed form, and on inputs of any shape."""

import math

import pytest
import torch

from robustssm.attacks.access import Access
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.ops import divergence
from robustssm.ops.balls import over

DUALS = {"linf": 1, "l2": 2, "l1": math.inf}


@pytest.mark.parametrize("norm, slack", [("linf", 1e-9), ("l2", 1e-9), ("l1", 1e-2)])
@pytest.mark.parametrize(
    "attack",
    [APGD(), APGD(loss="dlr"), APGD(large_eps=True), APGDTargeted(), APGDTargeted(large_eps=True)],
    ids=lambda attack: attack.label,
)
def test_breaks_what_can_be_broken_of_two_linear_classes(attack, norm, slack):
    """And two that follow far below, so that DLR exists. Within `slack` of the closed form."""
    w = Noise(1).normal(8, dtype=torch.float64)
    x = Noise(2).normal(40, 8, dtype=torch.float64)
    radii = torch.tensor([0.5, 1 - slack, 1 + 1e-9, 1.5], dtype=torch.float64).repeat(10)

    def model(z):
        up = z @ w
        return torch.stack((up, -up, 0 * up - 40, 0 * up - 41), 1)

    y = model(x).argmax(1)
    x = x * over(0.3 * radii / ((x @ w).abs() / w.norm(p=DUALS[norm])), x)
    threat = Threat(norm=norm, eps=0.3, bounds=(-1e4, 1e4))
    found = attack(model, x, y, threat=threat, noise=Noise(3))
    assert torch.equal(divergence.wrong(model(found), y), radii < 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("together", [True, False])
def test_targets_break_what_can_be_broken_of_four_linear_classes(together, norm):
    w = Noise(1).normal(4, 8, dtype=torch.float64)
    x = Noise(2).normal(100, 8, dtype=torch.float64)
    logits = x @ w.T
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (w[y][:, None] - w).norm(dim=2, p=DUALS[norm])
    reach = (gaps / lengths).masked_fill(torch.arange(4) == y[:, None], torch.inf).amin(1)
    radii = torch.tensor([0.5, 1 - 1e-9, 1 + 1e-9, 1.5], dtype=torch.float64).repeat(25)
    x = x * over(0.3 * radii / reach, x)
    found = APGDTargeted(together=together)(
        lambda z: z @ w.T,
        x,
        y,
        threat=Threat(norm=norm, eps=0.3, bounds=(-1e4, 1e4)),
        noise=Noise(3),
    )
    assert torch.equal(divergence.wrong(found @ w.T, y), radii < 1)


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10])
@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=10),
        APGD(steps=10, loss="dlr"),
        APGDTargeted(steps=10),
        APGDTargeted(steps=10, together=False),
    ],
    ids=["ce", "dlr", "together", "one-by-one"],
)
def test_any_number_of_classes(attack, classes):
    w = Noise(1).normal(classes, 12, dtype=torch.float64)
    x = Noise(2).uniform(20, 12, dtype=torch.float64)
    model = Access(lambda z: (z - 0.5) @ w.T)
    y = model.logits(x).argmax(1)
    found = attack.search(model, x, y, threat=Threat(eps=0.3), noise=Noise(3))
    wrong = divergence.wrong(model.logits(found.points), y)
    assert wrong.float().mean() > 0.8
    assert torch.equal(found.part >= 0, wrong) and found.part.max() < classes - 1


def test_two_classes_are_climbed_by_a_margin_whose_value_tells():
    """The ratio is +-1 there, so that no best point could be told from another."""
    w = Noise(1).normal(12, dtype=torch.float64)
    x = Noise(2).uniform(20, 12, low=0.4, high=0.6, dtype=torch.float64)
    threat = Threat(eps=0.01)

    def model(z):
        up = (z - 0.5) @ w
        return torch.stack((up + 5, -up - 5), 1)  # out of reach

    y = torch.zeros(20, dtype=torch.int64)
    for attack in (APGDTargeted(steps=10), APGD(steps=10, loss="dlr")):
        found = attack(model, x, y, threat=threat, noise=Noise(3))
        torch.testing.assert_close(found, x - 0.01 * w.sign(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm, eps", [("linf", 0.3), ("l2", 1.0), ("l1", 2.0)])
@pytest.mark.parametrize("shape", [(7,), (6, 3), (2, 4, 4), (9, 1)])
@pytest.mark.parametrize("attack", [APGD, APGDTargeted])
def test_inputs_of_any_shape(attack, shape, norm, eps):
    w = Noise(1).normal(math.prod(shape), 5)
    x = Noise(2).uniform(12, *shape)

    def model(z):
        return torch.tanh(3 * (z.flatten(1) - 0.5)) @ w

    y, threat = model(x).argmax(1), Threat(norm=norm, eps=eps)
    for large_eps in (False, True):
        found = attack(steps=12, large_eps=large_eps)(model, x, y, threat=threat, noise=Noise(3))
        assert found.shape == x.shape and found.dtype == x.dtype
        assert threat.distance(found, x).max() <= eps * (1 + 1e-6)
        assert found.min() >= 0 and found.max() <= 1
        assert divergence.wrong(model(found), y).any()


def test_tiny_gradients_are_followed_under_l2():
    """In float32 the authors' constant in the denominator would stop the search."""
    w = Noise(1).normal(12)
    x = Noise(2).uniform(20, 12, low=0.4, high=0.6)

    def model(z):
        up = 1e-18 * ((z - 0.5) @ w) ** 3 + 1e-18 * (z - 0.5) @ w
        return torch.stack((up, -up), 1)

    y = model(x).argmax(1)
    found = APGD()(model, x, y, threat=Threat(norm="l2", eps=0.3), noise=Noise(3))
    reach = ((x - 0.5) @ w).abs() / w.norm()
    assert divergence.wrong(model(found), y)[reach < 0.29].all()
