"""Every registered objective, with all samples of its settings, keeps the contract."""

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.threat import Threat
from robustssm.core.config import lookup, names
from robustssm.core.rng import Noise
from robustssm.testing.objectives import check_objective
from robustssm.training.objective import Update
from robustssm.training.standard import Standard


def samples():
    return [
        pytest.param(objective, id=f"{name}-{number}")
        for name in names("objective")
        for number, objective in enumerate(lookup("objective", name).samples())
    ]


@pytest.mark.parametrize("objective", samples())
def test_objective_keeps_the_contract(objective):
    check_objective(objective)


def attacking_in_train_mode(self, model, x, y, *, memory, noise):
    x_adv = FGSM()(model, x, y, threat=Threat(eps=0.1), noise=noise)
    yield Update(loss=F.cross_entropy(model(x_adv), y))


def leaving_eval_mode(self, model, x, y, *, memory, noise):
    model.eval()
    yield Update(loss=F.cross_entropy(model(x), y))


def never_stepping(self, model, x, y, *, memory, noise):
    yield Update(loss=F.cross_entropy(model(x), y), step=False)


def attached_parts(self, model, x, y, *, memory, noise):
    loss = F.cross_entropy(model(x), y)
    yield Update(loss=loss, parts={"loss": loss})


def changing_names(self, model, x, y, *, memory, noise):
    loss = F.cross_entropy(model(x), y)
    yield Update(loss=loss, parts={f"loss_of_{len(x)}": loss.detach()})


def drawing(self, model, x, y, *, memory, noise):
    yield Update(loss=F.cross_entropy(model(x + 0.01 * torch.empty_like(x).uniform_()), y))


def whole_batches_only(self, model, x, y, *, memory, noise):
    yield Update(loss=F.cross_entropy(model(x + Noise(0).normal(6, *x.shape[1:], like=x)), y))


@pytest.mark.parametrize(
    "updates, says",
    [
        (attacking_in_train_mode, "does not carry the loss"),
        (leaving_eval_mode, "mode must be restored"),
        (never_stepping, "must step"),
        (attached_parts, "detached"),
        (changing_names, "keep their names"),
        (drawing, "global random state"),
        (whole_batches_only, "size of tensor"),
    ],
)
def test_an_objective_that_breaks_the_contract_is_caught(updates, says, monkeypatch):
    monkeypatch.setattr(Standard, "updates", updates)
    before = torch.random.get_rng_state()
    with pytest.raises((AssertionError, RuntimeError), match=says):
        check_objective(Standard())
    torch.random.set_rng_state(before)
