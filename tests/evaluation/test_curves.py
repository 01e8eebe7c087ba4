"""Curves against closed forms, and nested where the attack is."""

import pytest
import torch

from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise, Streams
from robustssm.evaluation.curves import over_eps, over_restarts, over_steps, survivors

THREAT = Threat(eps=0.05)
OPTIONS = {"threat": THREAT, "streams": Streams(0), "batch_size": 32}


def test_over_eps_is_exact_for_a_linear_model():
    w = Noise(0).normal(6, dtype=torch.float64)
    x = Noise(1).uniform(60, 6, low=0.4, high=0.6, dtype=torch.float64)
    score = (x - 0.5) @ w
    y = (score > 0).long()
    y[:5] = 1 - y[:5]  # wrong from the start

    def model(z):
        return torch.stack((-((z - 0.5) @ w), (z - 0.5) @ w), 1)

    values = (0.0, 0.01, 0.02, 0.1)
    curve = over_eps(PGD(steps=10), model, x, y, values=values, **OPTIONS)
    assert (curve.axis, curve.attack, curve.values) == ("eps", "pgd-10", values)
    for eps, flags in zip(values, curve.survived, strict=True):
        right = score.abs() > eps * w.abs().sum()
        right[:5] = False
        assert flags == tuple(right.tolist())
    assert 1 > curve.accuracies[0] > curve.accuracies[1] > curve.accuracies[-1]


@pytest.mark.parametrize("over, values", [(over_steps, (1, 2, 5)), (over_restarts, (1, 2, 5))])
def test_best_iterates_and_restarts_are_nested(over, values, network):
    """The same streams for every value: who falls once, falls from then on."""
    curve = over(PGD(steps=3), *network, values=values, **OPTIONS)
    for fewer, more in zip(curve.survived[:-1], curve.survived[1:], strict=True):
        assert all(then or not now for then, now in zip(fewer, more, strict=True))
    assert curve.accuracies[0] > curve.accuracies[-1] > 0
    alone = over(PGD(steps=3), *network, values=values[-1:], **OPTIONS)
    assert alone.survived == curve.survived[-1:]


def test_examples_keep_their_streams_whatever_their_batch(network):
    model, x, y = network
    whole = over_steps(PGD(), model, x, y, values=(2,), **OPTIONS)
    options = OPTIONS | {"batch_size": 130}
    assert over_steps(PGD(), model, x, y, values=(2,), **options) == whole
    rows = torch.arange(40, 90)
    part = over_steps(PGD(), model, x[rows], y[rows], values=(2,), indices=rows, **OPTIONS)
    assert part.survived[0] == whole.survived[0][40:90]


def test_a_mask_holds(network):
    model, x, y = network
    mask = torch.zeros_like(x, dtype=torch.bool)
    held = survivors(FGSM(), model, x, y, path=("a",), mask=mask, **OPTIONS)
    assert torch.equal(held, model(x).argmax(1) == y)
    mask[:65] = True
    some = survivors(FGSM(), model, x, y, path=("a",), mask=mask, **OPTIONS)
    assert torch.equal(some[65:], held[65:]) and some[:65].sum() < held[:65].sum()


@pytest.mark.parametrize("values", [(), (2, 1), (1, 1)])
def test_values_must_ascend(values, network):
    with pytest.raises(ValueError, match="ascending"):
        over_eps(PGD(), *network, values=values, **OPTIONS)


def test_an_attack_without_the_setting_is_refused(network):
    with pytest.raises(ValueError, match=r"have a setting `restarts`; got FGSM"):
        over_restarts(FGSM(), *network, values=(1,), **OPTIONS)
