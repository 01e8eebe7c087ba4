"""MART: its loss written out, stable logarithms, its limit at beta = 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.training.mart import Mart, boosted_cross_entropy, weighted_kl
from robustssm.training.pgd_training import PGDTraining
from tests.training.tiny import classifier, examples

ATTACK = PGD(steps=3, start="normal", keep="last")


def naive_boosted(logits, y):
    p = logits.softmax(1)
    rivals = p.clone()
    rivals[torch.arange(len(y)), y] = 0
    return -p[torch.arange(len(y)), y].log() - (1 - rivals.max(1).values).log()


def naive_weighted(clean, shifted, y):
    p, q = clean.softmax(1), shifted.softmax(1)
    return (p * (p / q).log()).sum(1) * (1 - p[torch.arange(len(y)), y])


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), scale=st.floats(0.1, 5))
def test_terms_are_those_of_the_formulas(seed, classes, scale):
    noise = Noise(seed)
    y = noise.integers(7, high=classes)
    one, two = (noise.fork(k).normal(7, classes, std=scale, dtype=torch.float64) for k in "ab")
    torch.testing.assert_close(
        boosted_cross_entropy(one, y), naive_boosted(one, y), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        weighted_kl(one, two, y), naive_weighted(one, two, y), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_predictions_have_exact_losses_and_gradients(sign):
    """Right or wrong by 80: in float32 the formula's 1 - p is 0, and its logarithm infinite."""
    logits = torch.tensor([[80.0 * sign, 0.0, -5.0]], requires_grad=True)
    y = torch.tensor([0])
    loss = boosted_cross_entropy(logits, y)
    wanted = boosted_cross_entropy(logits.detach().double(), y)
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    if sign < 0:
        assert float(wanted) == pytest.approx(80 + 5, abs=0.1)
        assert float(weighted_kl(logits.detach(), logits.detach() + 1, y)) == pytest.approx(0)


def test_the_whole_loss_and_its_gradient():
    model, (x, y, noise) = classifier(disturbable=False), examples()
    threat = Threat(eps=0.2)
    mart = Mart(threat=threat, attack=ATTACK, beta=2.5)
    x_adv = ATTACK(model, x, y, threat=threat, noise=noise)
    shifted, clean = model(x_adv), model(x)
    expected = naive_boosted(shifted, y).mean() + 2.5 * naive_weighted(clean, shifted, y).mean()
    (update,) = mart.updates(model, x, y, memory={}, noise=noise)
    torch.testing.assert_close(update.loss, expected, rtol=1e-9, atol=0)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(update.loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    total = update.parts["boosted_loss"] + 2.5 * update.parts["weighted_kl"]
    torch.testing.assert_close(total, update.loss.detach())


def test_at_beta_zero_it_is_boosted_training_and_leaves_no_more_traces(outcome):
    """Same points, passes and draws as PGD training, and the boosted loss instead of its own."""
    threat = Threat(eps=0.2)
    mart = outcome(Mart(threat=threat, attack=ATTACK, beta=0.0))
    pgd = outcome(PGDTraining(threat=threat, attack=ATTACK))
    for name, buffer in mart.buffers.items():
        assert torch.equal(buffer, pgd.buffers[name]), name
    assert torch.equal(mart.random, pgd.random)
    assert torch.equal(mart.update.loss.detach(), mart.update.parts["boosted_loss"])
    assert mart.update.loss > pgd.update.loss, "boosting adds a positive term"
    assert float(mart.update.parts["weighted_kl"]) > 0


def test_eps_rises():
    assert Mart(threat=Threat(eps=0.2), eps_warmup=0.5).at(0.25).threat.eps == pytest.approx(0.1)
