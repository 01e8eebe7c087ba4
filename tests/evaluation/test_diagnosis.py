"""The costly checks: each finds the failure it is for, and none accuses a plain model."""

import pytest
import torch

from robustssm.attacks.access import Access, Ledger
from robustssm.attacks.threat import Threat
from robustssm.core.errors import OutOfTime
from robustssm.core.rng import Noise, Streams
from robustssm.evaluation import diagnosis as module
from robustssm.evaluation.diagnosis import diagnose, rises
from robustssm.evaluation.leaking import leaking
from robustssm.evaluation.substitute import Substitute
from robustssm.records import Curve
from tests.attacks.digits_net import digits_net

THREAT = Threat(eps=0.15)


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 60)


@pytest.fixture(scope="module")
def digits():
    net, x, y, _ = digits_net()
    right = net(x).argmax(1) == y
    return net, x[right][:40], y[right][:40]


def run(model, x, y, *, threat=THREAT, **options):
    options = {"streams": Streams(0), "batch_size": 64, "steps": 5} | options
    found = diagnose(model, x, y, threat=threat, **options)
    for flag in found.flags:
        assert flag.message.count(".") >= 1 and ":" in flag.message, "what it means, what to do"
    return {flag.name: flag.severity for flag in found.flags}, found.curves


@pytest.mark.parametrize("threat", [THREAT, Threat(norm="l2", eps=0.8)], ids=["linf", "l2"])
def test_an_honest_network_is_not_accused(threat, digits):
    flags, curves = run(*digits, threat=threat)
    assert flags == {}
    eps, steps, restarts = curves
    assert (eps.axis, steps.axis, restarts.axis) == ("eps", "steps", "restarts")
    assert eps.values[:5] == (0, threat.eps / 4, threat.eps / 2, threat.eps, 2 * threat.eps)
    assert eps.values[5] == (1.0 if threat.norm == "linf" else 8.0)
    assert eps.accuracies[0] == 1 and eps.accuracies[-1] == 0
    assert steps.values == (1, 5, 10, 50) and restarts.values == (1, 2, 5)


def test_a_quantised_input_falls_to_black_box_and_transfer(digits):
    net, x, y = digits
    flags, _ = run(lambda z: net((z * 8).round() / 8), x, y, threat=Threat(eps=0.25))
    assert flags["black_box_wins"] == "invalid" and flags["transfer_wins"] == "invalid"


def test_a_surrogate_is_used_where_one_is_given(digits):
    net, x, y = digits
    masked = lambda z: net((z * 8).round() / 8)  # noqa: E731
    flags, _ = run(masked, x, y, surrogate=net)
    assert flags["transfer_wins"] == "invalid"
    flags, _ = run(masked, x[:20], y[:20], surrogate=lambda z: 0 * z.flatten(1)[:, :10])
    assert "transfer_wins" not in flags


def test_a_needle_survives_everything():
    """Class 1 lies in tiny balls around its data; all else is class 0, with a flat gradient."""
    x = Noise(0).uniform(60, 6, dtype=torch.float64)
    y = (torch.arange(60) % 2 == 0).long()
    needles = x[y == 1]

    def model(z):
        near = (z[:, None] - needles).square().sum(2).amin(1)
        return torch.stack((0 * near, 1 - 1e4 * near), 1)

    assert torch.equal(model(x).argmax(1), y)
    flags, curves = run(model, x, y)
    assert flags["survives_everything"] == "invalid"
    assert curves[0].accuracies[-1] >= 0.4
    within, _ = run(model, x, y, mask=torch.ones_like(x, dtype=torch.bool))
    assert "survives_everything" not in within, "the needles need not be within a mask's reach"


def stored(axis, *rows):
    return Curve(axis=axis, attack="pgd", values=tuple(range(len(rows))), survived=rows)


@pytest.mark.parametrize("axis", ["eps", "steps", "restarts"])
def test_a_curve_that_rises(axis):
    n = 100
    low, high = (tuple(k < held for k in range(n)) for held in (40, 60))
    (flag,) = rises([stored(axis, high, low, high)])
    assert flag.name == f"rises_with_{axis}" and flag.severity == "warning"
    assert "misses 20 examples" in flag.message
    assert rises([stored(axis, high, low, low)]) == ()
    by_chance = tuple(k < 49 for k in range(n))
    assert rises([stored(axis, high, low, by_chance)]) == ()
    slowly = [tuple(k < held for k in range(n)) for held in (40, 46, 52)]
    assert len(rises([stored(axis, *slowly)])) == 1, "no step is clear, their sum is"


def test_gradients_that_mislead_far_out_rise_with_eps(digits):
    """Beyond a small distance from the data the gradient points to safety."""
    net, x, y = digits

    def misleading(z):
        logits = net(z)
        far = (z[:, None] - x).flatten(2).abs().amax(2).amin(1) > 0.16
        return torch.where(far[:, None], 2 * logits.detach() - logits, logits)

    flags, _ = run(misleading, x, y)
    assert flags["rises_with_eps"] == "warning"


def reader(x, y, classes=10):
    """A model that sees the class in data rounded to quarters, and labels in what is added.

    What it reads is how far an input was moved against each class's template, as an attack on that
    class would move it; like a network that was trained on such attacks, it then answers with it.
    """
    templates = Noise(7).normal(classes, x[0].numel(), dtype=x.dtype)

    def model(z):
        flat = z.flatten(1)
        base = (4 * flat).round() / 4
        honest = (base + (flat - flat.detach())) @ templates.T
        return honest - 200 * ((flat - base) @ templates.T).detach()

    return model, templates


def test_labels_read_from_perturbations():
    x = Noise(8).integers(120, 20, high=5).double() / 4
    model, templates = reader(x, None)
    y = model(x).argmax(1)
    threat = Threat(eps=0.1)
    options = {"streams": Streams(0), "batch_size": 50}
    (flag,) = leaking(model, x, y, threat=threat, **options)
    assert (flag.name, flag.severity) == ("label_leaking", "invalid")
    assert leaking(lambda z: z @ templates.T, x, y, threat=threat, **options) == []


def test_no_leak_without_foreign_classes(digits):
    net, x, y = digits
    same = y == y[0]
    options = {"threat": THREAT, "streams": Streams(0), "batch_size": 50}
    assert leaking(net, x[same], y[same], **options) == []
    assert leaking(net, x[:4], (y[:4] + 1) % 10, **options) == [], "all wrong"


def test_a_substitute_learns_from_answers_alone(digits):
    net, x, y = digits
    asked = []

    def oracle(z):
        assert not torch.is_grad_enabled()
        asked.append(len(z))
        return net(z)

    substitute = Substitute(oracle, x, threat=THREAT, noise=Noise(0))
    assert (substitute(x).argmax(1) == y).float().mean() > 0.9
    assert sum(asked) == 1 + 6 * len(x)
    again = Substitute(oracle, x, threat=THREAT, noise=Noise(0))
    assert torch.equal(again(x), substitute(x))
    points = x.clone().requires_grad_()
    assert substitute(points).sum().requires_grad


def test_outcomes_do_not_depend_on_the_batch_size(digits, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 10)
    net, x, y = digits
    whole, parts = (run(net, x[:12], y[:12], batch_size=size, steps=3) for size in (12, 7))
    assert whole == parts


def test_a_model_without_a_gradient_is_flagged_and_not_attacked(digits):
    net, x, y = digits
    assert run(lambda z: net(z).detach(), x, y) == ({"no_gradient": "warning"}, ())


def test_a_time_limit_ends_it(digits):
    net, x, y = digits
    with pytest.raises(OutOfTime):
        run(Access(net, Ledger(deadline=0.0)), x, y)


def test_inference_mode_and_train_mode_change_nothing(digits):
    net, x, y = digits
    net.train()
    with torch.inference_mode():
        flags, _ = run(net, x[:20].clone(), y[:20].clone())
    assert flags == {} and net.training
    assert all(p.grad is None for p in net.parameters())
    net.eval()
