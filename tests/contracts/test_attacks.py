"""Every registered attack, with all samples of its settings, keeps the contract; it can fail."""

import pytest
import torch

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.suites import Suite
from robustssm.core.config import lookup, names
from robustssm.testing.attacks import check_attack


def samples():
    return [
        pytest.param(attack, id=f"{name}-{number}")
        for name in names("attack")
        for number, attack in enumerate(lookup("attack", name).samples())
        if not isinstance(attack, Suite)  # minutes long; every stage is here by itself
    ]


@pytest.mark.parametrize("attack", samples())
def test_attack_keeps_the_contract(attack):
    check_attack(attack)


def switching(self, model, x, y, *, region, noise):
    model._logits.train()
    return x


def backward(self, model, x, y, *, region, noise):
    x = x.clone().requires_grad_()
    model(x).sum().backward()
    return x.detach() + 0.01 * x.grad.sign()


def drawing(self, model, x, y, *, region, noise):
    torch.ones(3).uniform_()
    return x


def sharing(self, model, x, y, *, region, noise):
    return x + 0.1 * x.mean()


def averaging(self, model, x, y, *, region, noise):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), y)
    return x.detach() + 0.1 * torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize(
    "perturb, says",
    [
        (switching, "the mode of"),
        (backward, "the gradient of"),
        (drawing, "global random state"),
        (sharing, "must not depend on its batch"),
        (averaging, "must not depend on its batch"),
    ],
)
def test_an_attack_that_breaks_the_contract_is_caught(perturb, says, monkeypatch):
    monkeypatch.setattr(PGD, "perturb", perturb)
    before = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=says):
        check_attack(PGD())
    torch.random.set_rng_state(before)


def test_an_attack_that_is_not_projected_is_caught(monkeypatch):
    monkeypatch.setattr(Attack, "__call__", lambda self, model, x, y, *, threat, noise: x + 0.2)
    with pytest.raises(AssertionError, match="in bounds"):
        check_attack(PGD())
