"""Auto-PGD: its own laws."""

import functools
import math

import pytest
import torch

from robustssm.attacks import apgd_steps
from robustssm.attacks.access import Access
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.apgd_steps import Goal
from robustssm.attacks.restrictions import Band, Window
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.ops import divergence
from tests.attacks.digits_net import digits_net

EPS = {"linf": 0.15, "l2": 1.0, "l1": 2.0}


@functools.cache
def digits():
    return digits_net()


def search(attack, x, y, norm, noise, *, model=None):
    """Whether each example was fooled, and the candidates; an attack never claims too much."""
    net = model or digits()[0]
    found = attack.search(net, x, y, threat=Threat(norm=norm, eps=EPS[norm]), noise=noise)
    wrong = divergence.wrong(Access.of(net).logits(found.points), y)
    assert torch.equal(wrong, found.part >= 0)
    return wrong, found


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("attack", [APGD, APGDTargeted])
def test_leaving_out_the_fooled_changes_no_verdict(attack, norm):
    _, x, y, _ = digits()
    x, y = x[:100], y[:100]
    few = {"steps": 12} | ({"targets": 3} if attack is APGDTargeted else {})
    sure, model = {}, Access(digits()[0])
    for drop in (True, False):
        before = model.ledger.forwards
        sure[drop], found = search(attack(drop=drop, **few), x, y, norm, Noise(1), model=model)
        sure[drop, "rows"] = model.ledger.forwards - before
        assert found.points.isfinite().all()
    assert torch.equal(sure[True], sure[False]) and 0 < sure[True].sum() < len(y)
    assert sure[True, "rows"] < 0.9 * sure[False, "rows"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targets_together_fool_as_many_in_a_ninth_of_the_calls(norm):
    _, x, y, _ = digits()
    stage = {"linf": "survive_Linf_0.15_apgd-ce", "l2": "survive_L2_1.0_apgd-ce"}[norm]
    rows = digits()[3][stage]
    x, y = x[rows][:40], y[rows][:40]
    wrong, calls = {}, {}
    for together in (True, False):
        model = Access(digits()[0])
        attack = APGDTargeted(steps=15, together=together)
        wrong[together], found = search(attack, x, y, norm, Noise(1), model=model)
        calls[together] = model.ledger.calls
        assert set(found.part.tolist()) <= set(range(-1, 9))
    assert torch.equal(wrong[True], wrong[False])
    assert calls[True] <= calls[False] / 8 and calls[False] > 9 * 15


@pytest.mark.parametrize(
    "attack, size, count",
    [
        (APGD(steps=8), 100, 500),
        (APGD(steps=8), 37, 500),
        (APGD(steps=8), 1, 25),
        (APGDTargeted(steps=5, targets=3), 37, 100),
        (APGDTargeted(steps=5, targets=3), 1, 25),
        pytest.param(APGD(), 1, 500, marks=pytest.mark.slow),
        pytest.param(APGD(), 37, 500, marks=pytest.mark.slow),
        pytest.param(APGDTargeted(), 100, 500, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_verdicts_do_not_depend_on_the_batch(attack, size, count, norm):
    _, x, y, _ = digits()
    streams = Noise(2, torch.arange(len(x)))
    whole, _ = search(attack, x[:count], y[:count], norm, streams.select(torch.arange(count)))
    parts = [
        search(attack, x[rows], y[rows], norm, streams.select(rows))[0]
        for rows in torch.arange(count).split(size)
    ]
    assert torch.equal(torch.cat(parts), whole) and 0 < whole.sum() < count


@pytest.mark.parametrize("norm, eps", [("linf", 0.3), ("l2", 1.0), ("l1", 3.0)])
@pytest.mark.parametrize("attack", [APGD(steps=15), APGDTargeted(steps=15)], ids=["ce", "t"])
def test_restricted_sets_are_searched(attack, norm, eps, network):
    model, x, y = network
    x[:, 0] = x[:, 0].round()
    y = model(x).argmax(1)
    whole = divergence.wrong(
        model(attack(model, x, y, threat=Threat(norm=norm, eps=eps), noise=Noise(3))), y
    )
    for part in (
        {"window": Window(length=2)},
        {"channels": (1, 2)},
        {"band": Band(high=0.7)},
        {"channel_scales": (1.0, 0.5, 1.0, 0.5)},
    ):
        threat = Threat(norm=norm, eps=eps, **part)
        found = attack(model, x, y, threat=threat, noise=Noise(3))
        wrong = divergence.wrong(model(found), y)
        assert 0 < wrong.sum() <= whole.sum(), part
        if "window" in part:
            assert torch.equal(found[:, 2:], x[:, 2:])
        if "channels" in part:
            assert torch.equal(found[..., [0, 3]], x[..., [0, 3]])
    nothing = torch.zeros_like(x, dtype=torch.bool)
    threat = Threat(norm=norm, eps=eps)
    assert torch.equal(attack(model, x, y, threat=threat, noise=Noise(3), mask=nothing), x)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    "attack",
    [APGD(steps=6), APGD(steps=6, loss="dlr"), APGDTargeted(steps=6)],
    ids=["ce", "dlr", "t"],
)
def test_models_that_answer_nan_stop_nothing(attack, norm, network):
    model, x, y = network
    threat = Threat(norm=norm, eps=0.05)

    def logits(z):
        return model(z).masked_fill((z.flatten(1)[:, :1] > 0.7), math.nan)

    def gradients(z):
        return model(z) + 0 * (z.flatten(1)[:, :1] - 0.7).clamp(min=0).sqrt()

    for fragile in (logits, gradients):
        found = attack(fragile, x, y, threat=threat, noise=Noise(0))
        assert found.isfinite().all()
    for classes in (2, 3):
        few = y.clamp(max=classes - 1)
        found = attack(lambda z, c=classes: logits(z)[:, :c], x, few, threat=threat, noise=Noise(0))
        assert found.isfinite().all()


@pytest.mark.parametrize("drop", [True, False])
def test_a_random_model_is_judged_by_the_mean_of_its_softmax(drop):
    """It is right by much and wrong by little in turn: right on average, wrong in the last pass."""
    calls = []

    def model(z):
        calls.append(len(z))
        up = z.sum(1)
        sign = -0.1 if len(calls) % 2 == 0 else 3.0
        return torch.stack((up * 0 + sign, 0 * up), 1)

    x, y = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    threat = Threat(eps=0.1)
    found = APGD(steps=4, draws=2, drop=drop).search(model, x, y, threat=threat, noise=Noise(0))
    assert len(calls) == 10 and (found.part == -1).all()
    found = APGD(steps=4, drop=drop).search(model, x, y, threat=threat, noise=Noise(0))
    assert (found.part == 0).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_draws_of_a_model_that_is_not_random_change_nothing(loss, network):
    model, x, y = network
    threat = Threat(norm="l2", eps=0.2)
    one, four = (
        APGD(steps=8, draws=draws, loss=loss).search(model, x, y, threat=threat, noise=Noise(0))
        for draws in (1, 4)
    )
    torch.testing.assert_close(one.points, four.points, rtol=0, atol=1e-9)
    assert torch.equal(one.part, four.part)


def test_the_point_of_highest_loss_is_returned_where_nobody_is_fooled(network):
    model, x, y = network
    seen = []

    def spy(z):
        logits = model(z) + 9 * torch.nn.functional.one_hot(y, 4)  # out of reach
        seen.append((z.detach().clone(), divergence.cross_entropy(logits, y).detach()))
        return logits

    threat = Threat(eps=0.01)
    found = APGD(steps=20).search(spy, x, y, threat=threat, noise=Noise(0))
    assert (found.part == -1).all() and len(seen) == 21
    points, losses = (torch.stack(values) for values in zip(*seen, strict=True))
    best = points[losses.argmax(0), torch.arange(len(x))]
    assert torch.equal(found.points, best)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=7),
        APGD(steps=10, large_eps=True, restarts=2, draws=2),
        APGDTargeted(steps=7, together=False),
        APGDTargeted(steps=7, targets=2, restarts=3, together=False),
        APGDTargeted(steps=10, draws=2, large_eps=True),
    ],
    ids=lambda attack: attack.label,
)
def test_counts_its_passes(attack, network):
    model, x, y = network
    access = Access(model)
    attack(access, x, y, threat=Threat(eps=0.0), noise=Noise(0))
    ledger = access.ledger
    assert (ledger.forwards / len(x), ledger.backwards / len(x)) == attack.passes(4)


def test_the_phases_are_those_of_the_suite():
    assert APGD(large_eps=True).phases() == ((3.0, 30), (2.0, 30), (1.0, 40))
    assert APGD(large_eps=True, steps=5).phases() == ((3.0, 2), (2.0, 2), (1.0, 1))
    assert APGD(steps=5).phases() == ((1.0, 5),)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_larger_radii_come_first_and_end_within_eps(norm, network):
    model, x, y = network
    furthest = []

    def spy(z):
        if len(z) == len(x):
            furthest.append(float(Threat(norm=norm, eps=1.0).distance(z.detach(), x).max()))
        return model(z) + 100 * torch.nn.functional.one_hot(y[: len(z)], 4)

    threat = Threat(norm=norm, eps=0.02)
    APGD(steps=10, large_eps=True)(spy, x, y, threat=threat, noise=Noise(0))
    assert len(furthest) == 13
    reached = [max(furthest[a:b]) for a, b in ((0, 4), (4, 8), (8, 13))]
    assert reached == pytest.approx([0.06, 0.04, 0.02], rel=1e-3)


def test_a_target_that_fools_ends_its_example_for_all_targets(network):
    model, x, y = network
    threat = Threat(eps=0.2)
    seen = []

    def spy(z):
        seen.append(len(z))
        return model(z)

    attack = APGDTargeted(steps=10)
    found = attack.search(spy, x, y, threat=threat, noise=Noise(0))
    assert seen[:2] == [60, 180] and all(count % 3 == 0 for count in seen[1:])
    assert seen[-1] < 180 and (found.part >= 0).sum() >= 60 - seen[-1] // 3
    one = APGDTargeted(steps=10, targets=1).search(model, x, y, threat=threat, noise=Noise(0))
    assert set(one.part.tolist()) == {-1, 0}
    assert ((found.part >= 0) | (one.part < 0)).all(), "the first target has the same start"


def test_wrong_from_the_start_and_empty_batches(network):
    model, x, y = network
    for attack in (APGD(steps=3), APGDTargeted(steps=3), APGDTargeted(steps=3, together=False)):
        other = (y + 1) % 4
        found = attack(model, x, other, threat=Threat(eps=1e-6), noise=Noise(0))
        assert divergence.wrong(model(found), other).all()
        nobody = attack.search(model, x[:0], y[:0], threat=Threat(eps=0.1), noise=Noise(0))
        assert len(nobody.points) == len(nobody.part) == 0


def test_the_true_class_is_no_target_whatever_the_logits():
    nan, inf = math.nan, math.inf
    rows = [[0.0, 3, 1, 2], [nan, inf, nan, 0], [nan] * 4, [-inf, -inf, 1, inf], [5, 5, 5, 5]]
    logits, y = torch.tensor(rows), torch.tensor([0, 1, 2, 3, 1])
    model = Access(lambda z: logits[: len(z)])
    targets = APGDTargeted()._targets(model, torch.zeros(5, 2), y)
    assert targets[0].tolist() == [1, 3, 2] and targets[4].tolist() == [0, 2, 3]
    assert targets[1, 0] == 3, "what is not a number is least likely"
    for row, c in zip(targets.tolist(), y.tolist(), strict=True):
        assert sorted([*row, c]) == [0, 1, 2, 3]
    assert APGDTargeted(targets=2)._targets(model, torch.zeros(5, 2), y).shape == (5, 2)


def test_a_loss_of_nan_is_never_the_best():
    model = Access(lambda z: torch.stack((z[:, 0] * math.inf, z[:, 1]), 1))
    x, y = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    seen = Goal(model, y, loss="cross_entropy").look(x)
    assert (seen.loss == -math.inf).all() and not seen.wrong.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_lie_at_distance_eps_also_where_little_may_be_touched(norm, network):
    _, x, _ = network
    threat = Threat(norm=norm, eps=0.3, bounds=(-9.0, 9.0), window=Window(length=1))
    (region,) = threat.regions(x)
    start = apgd_steps.start(region, Noise(0).rows(len(x)))
    expected = torch.full((len(x),), 0.3, dtype=torch.float64)
    torch.testing.assert_close(region.distance(start), expected, rtol=1e-9, atol=0)


def test_labels():
    assert APGD().label == "apgd-ce"
    assert APGD(loss="dlr", drop=False).label == "apgd-dlr"
    assert APGD(steps=50, restarts=5).label == "apgd-ce-50x5"
    assert APGD(restarts=5, large_eps=True).label == "apgd-ce-100x5-large_eps"
    assert APGD(draws=20, rho=0.5).label == "apgd-ce-rho0.5-draws20"
    assert APGDTargeted(together=False).label == "apgd_targeted"
    assert APGDTargeted(targets=5, steps=20).label == "apgd_targeted-5targets-20"


@pytest.mark.parametrize(
    "values, says",
    [
        ({"steps": 0}, "steps"),
        ({"rho": 1.5}, "rho"),
        ({"draws": 0}, "draws"),
        ({"steps": 4, "large_eps": True}, r"steps=\.\.\..* at least 5 .* got steps=4"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, says):
    for attack in (APGD, APGDTargeted):
        with pytest.raises(ValueError, match=says):
            attack(**values)
    with pytest.raises(ValueError, match="targets"):
        APGDTargeted(targets=0)
