"""PGD: optima of linear models, the published algorithm, its limits, costs and settings."""

import functools
import math
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks import restarts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict
from robustssm.core.rng import Noise
from robustssm.ops import divergence


@pytest.mark.parametrize("active", [False, True], ids=["free", "bounded"])
@pytest.mark.parametrize(
    "classes, loss",
    [(2, "cross_entropy"), (2, "margin"), (4, "cross_entropy"), (4, "margin"), (4, "dlr")],
)
@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.3)])
def test_reaches_the_optimum_of_a_linear_model(norm, eps, classes, loss, active, linear):
    for seed in range(3):
        model = linear(seed, classes, active=active)
        best = model.largest_rise(norm, eps)
        if not active:
            dual = model.direction.norm(p=1 if norm == "linf" else 2)
            torch.testing.assert_close(best, (eps * dual).expand(5), rtol=1e-9, atol=0)
        x_adv = PGD(steps=100, step_size=1.0, loss=loss)(
            model,
            model.x,
            model.y,
            threat=Threat(norm=norm, eps=eps),
            noise=Noise(seed, torch.arange(5)),
        )
        torch.testing.assert_close(model.rise(x_adv), best, rtol=1e-9, atol=0)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_equals_the_published_algorithm(keep, network):
    """madry2018towards, written out: mean loss, sign steps, clip to the ball, clip to the box."""
    model, x, y = network
    eps, alpha, steps = 0.3, 0.04, 10
    noise = Noise(5, torch.arange(len(x)))
    delta = noise.fork("start", 0).uniform(like=x, low=-eps, high=eps)
    z = (x + delta).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = z.detach() + alpha * g.sign()
        z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
    attack = PGD(steps=steps, step_size=alpha / eps, keep=keep)
    found = attack(model, x, y, threat=Threat(eps=eps), noise=noise)
    if keep == "last":
        torch.testing.assert_close(found, z, rtol=0, atol=1e-12)
    else:
        assert (divergence.wrong(model(found), y) | ~divergence.wrong(model(z), y)).all()


def test_the_trades_start_is_seen_unprojected_by_the_first_gradient(network):
    model, x, y = network
    x[:, 0] = 1.0  # so that noise leaves the box
    points = []

    def spy(z):
        points.append(z.detach().clone())
        return model(z)

    attack = PGD(steps=2, start="normal", start_std=0.01, loss="kl", keep="last")
    noise = Noise(5, torch.arange(len(x)))
    attack(spy, x, y, threat=Threat(eps=0.005), noise=noise)
    clean, first, second = points
    assert torch.equal(clean, x), "the clean prediction is taken once, at the input"
    assert torch.equal(first, x + noise.fork("start", 0).normal(like=x, std=0.01))
    assert first.max() > 1 and (first - x).abs().max() > 0.005
    assert second.max() <= 1 and (second - x).abs().max() <= 0.005 * (1 + 1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "kl"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.2)])
def test_the_best_iterate_is_never_worse_than_the_last(loss, start, norm, eps, network):
    model, x, y = network
    outcomes = {}
    for keep in ("best", "last"):
        attack = PGD(steps=6, step_size=0.9, loss=loss, start=start, keep=keep)
        noise = Noise(5, torch.arange(len(x)))
        x_adv = attack(model, x, y, threat=Threat(norm=norm, eps=eps), noise=noise)
        logits = model(x_adv).detach()
        value = {
            "cross_entropy": lambda z: divergence.cross_entropy(z, y),
            "margin": lambda z: divergence.margin(z, y),
            "dlr": lambda z: divergence.dlr(z, y),
            "kl": lambda z: divergence.kl(model(x).detach(), z),
        }[loss](logits)
        outcomes[keep] = divergence.wrong(logits, y), value
    (best_wrong, best), (last_wrong, last) = outcomes["best"], outcomes["last"]
    assert (best_wrong | ~last_wrong).all()
    same = best_wrong == last_wrong
    assert (best[same] >= last[same] - 1e-12).all()
    if norm == "linf":  # steps of 0.9 eps overshoot, so that the last is often not the best
        assert (best[same] > last[same] + 1e-9).any()


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=4, keep="last"),
        PGD(steps=4),
        PGD(steps=4, loss="kl", start="normal", keep="last"),
        PGD(steps=3, restarts=3, loss="kl"),
        PGD(steps=3, restarts=3, keep="last"),
    ],
    ids=lambda attack: f"{attack.label}-{attack.keep}",
)
def test_counts_its_passes(attack, network):
    model, x, y = network
    calls = []

    def spy(z):
        assert len(z) == len(x), "eps = 0: nothing is fooled, so every restart sees everyone"
        calls.append(torch.is_grad_enabled())
        return model(z)

    attack(spy, x, y, threat=Threat(eps=0.0), noise=Noise(5, torch.arange(len(x))))
    assert (len(calls), sum(calls)) == attack.passes(4)


def test_restarts_skip_what_is_fooled_and_give_the_same_flags(network, monkeypatch):
    model, x, y = network
    threat, seen = Threat(eps=0.06), []
    noise = Noise(5, torch.arange(len(x)))

    def spy(z):
        seen.append(len(z))
        return model(z)

    def fooled(attack):
        return divergence.wrong(model(attack(spy, x, y, threat=threat, noise=noise)), y)

    many = fooled(PGD(steps=2, restarts=6))
    assert seen[0] == len(x) and sorted(seen, reverse=True) == seen and seen[-1] < len(x)
    one = fooled(PGD(steps=2))
    assert (many | ~one).all() and many.sum() > one.sum(), "restarts must add something here"
    everyone = functools.partial(restarts.worst_of, survivors_only=False)
    monkeypatch.setattr("robustssm.attacks.pgd.worst_of", everyone)
    seen.clear()
    assert torch.equal(fooled(PGD(steps=2, restarts=6)), many)
    assert set(seen) == {len(x)}


def test_an_unprojected_start_is_no_candidate(network):
    """A model that is wrong only outside the ball must not lure the best iterate there."""
    model, x, y = network

    def lure(z):
        logits = model(z)
        outside = (z.detach() - x).flatten(1).abs().amax(1) > 0.05 * (1 + 1e-6)
        return torch.where(outside[:, None], logits - 100 * F.one_hot(y, 4), logits)

    found = {}
    for keep in ("best", "last"):
        attack = PGD(steps=5, start="normal", start_std=0.5, keep=keep)
        noise = Noise(5, torch.arange(len(x)))
        x_adv = attack(lure, x, y, threat=Threat(eps=0.05), noise=noise)
        found[keep] = divergence.wrong(lure(x_adv), y)
    assert found["last"].any() and (found["best"] | ~found["last"]).all()


def test_a_better_start_is_kept(network):
    """With steps that do harm, the best iterate is the start; the last is not."""
    model, x, y = network
    threat = Threat(eps=0.2)

    def misleading(z):
        logits = model(z)
        return logits.detach() * 2 - logits  # the values of the model, the gradient turned around

    noise = Noise(5, torch.arange(len(x)))
    start = threat.sample(x, noise.fork("start", 0))
    found = PGD(steps=3)(misleading, x, y, threat=threat, noise=noise)
    assert (found == start).flatten(1).all(1).float().mean() > 0.5


def test_nan_logits_are_taken_as_errors_and_points_stay_finite(network):
    model, x, y = network

    def fragile(z):
        return model(z).masked_fill((z.flatten(1)[:, :1] > 0.5), math.nan)

    found = PGD(steps=5)(fragile, x, y, threat=Threat(eps=0.3), noise=Noise(0))
    assert found.isfinite().all()
    near = (x.flatten(1)[:, 0] - 0.5).abs() < 0.05
    assert near.any() and fragile(found)[near].isnan().any()


def test_labels():
    assert PGD(steps=10).label == "pgd-10"
    assert PGD(steps=50, restarts=5).label == "pgd-50x5"
    assert PGD(steps=10, loss="margin").label == "pgd-10-margin"


@pytest.mark.parametrize(
    "values, says",
    [
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"restarts": 0}, "restarts"),
        ({"loss": "mse"}, "loss"),
        ({"restarts": 2, "start": "none"}, "same point"),
        ({"loss": "kl", "start": "none"}, "flat"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, says):
    with pytest.raises(ValueError, match=says):
        PGD(**values)


def test_a_model_without_gradients_is_refused(network):
    model, x, y = network
    for blind in (lambda z: model(z).detach(), lambda z: model(z.detach())):
        with pytest.raises(ValueError, match="depend differentiably"):
            PGD()(blind, x, y, threat=Threat(eps=0.1), noise=Noise(0))


def test_freezes_a_model_that_can_be_frozen(network):
    model, x, y = network
    inside = []

    class Freezing(torch.nn.Module):
        depth = 0

        @contextmanager
        def frozen(self):
            Freezing.depth += 1
            yield
            Freezing.depth -= 1

        def forward(self, z):
            inside.append(Freezing.depth)
            return model(z)

    PGD(steps=2, restarts=2)(Freezing(), x, y, threat=Threat(eps=0.0), noise=Noise(0))
    assert inside == [1] * 6 and Freezing.depth == 0


def test_the_settings_of_the_papers_are_values():
    mnist = PGD(steps=10, step_size=0.04 / 0.3)
    assert from_dict(PGD, mnist.to_dict()) == mnist
    assert mnist.to_dict()["name"] == "pgd"
