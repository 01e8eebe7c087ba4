"""Ensembles and suites: survivors only, the published stages, and deviations said in words."""

import re

import pytest
import torch

from robustssm.attacks.access import Access
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.fab import FAB, FABTargeted
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.restrictions import Band, Window
from robustssm.attacks.square import Square
from robustssm.attacks.suites import SUITES, AutoAttack, Quick, suite
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.evaluation.evaluate import evaluate

IMAGE = (1, 8, 8)


def resolve(which, threat=None, *, classes=10, shape=IMAGE, masked=False):
    threat = threat or Threat(eps=0.1)
    return which.resolve(threat, num_classes=classes, shape=shape, masked=masked)


def test_stages_see_survivors_only_and_the_result_is_the_worst_of_them(network):
    model, x, y = network
    given = []

    def spy(z):
        given.append(len(z))
        return model(z)

    threat, noise = Threat(eps=0.03), Noise(0, torch.arange(len(x)))
    stages = (FGSM(), PGD(steps=5), PGD(steps=5, loss="margin"))
    found = Ensemble(stages=stages).search(spy, x, y, threat=threat, noise=noise)
    wrong = model(found.points).argmax(1) != y
    assert 0 < int(wrong.sum()) < len(x)
    left = torch.ones_like(wrong)
    for number, stage in enumerate(stages):
        stream = noise.fork("stage", stage.label)
        alone = stage(model, x, y, threat=threat, noise=stream)
        fell = (model(alone).argmax(1) != y) & left
        assert torch.equal(found.part == number, fell)
        torch.testing.assert_close(found.points[fell], alone[fell], rtol=1e-9, atol=1e-12)
        left = left & ~fell
    assert torch.equal(wrong, ~left)
    assert max(given[2:]) < len(x), "the fooled are left out"


def test_it_counts_its_passes(network):
    model, x, y = network
    access = Access(model)
    attack = Ensemble(stages=(PGD(steps=3), PGD(steps=4)))
    attack(access, x, y, threat=Threat(eps=0.0), noise=Noise(0, torch.arange(len(x))))
    passes = attack.passes(4)
    assert access.ledger.forwards == passes.forward * len(x)
    assert access.ledger.backwards == passes.backward * len(x)


def test_two_stages_need_two_labels():
    with pytest.raises(ValueError, match="labels of their own"):
        Ensemble(stages=(PGD(), PGD(step_size=0.1)))


def test_autoattack_standard_is_as_published():
    found = resolve(AutoAttack())
    assert found.title == "autoattack_standard" and not found.deviations
    assert found.stages == (
        APGD(steps=100),
        APGDTargeted(steps=100, targets=9),
        FABTargeted(steps=100, targets=9),
        Square(queries=5000),
    )
    assert found.draws == 1
    assert resolve(AutoAttack(), Threat(norm="l2", eps=1.0)).stages == found.stages


def test_autoattack_under_l1_starts_from_larger_radii():
    ce, targeted, *_ = resolve(AutoAttack(), Threat(norm="l1", eps=6.0)).stages
    assert ce == APGD(restarts=5, large_eps=True)
    assert targeted == APGDTargeted(targets=5, large_eps=True)


def test_plus_rand_and_quick():
    plus = resolve(AutoAttack(version="plus"))
    assert plus.title == "autoattack_plus"
    assert [type(stage) for stage in plus.stages] == [
        APGD,
        APGD,
        FAB,
        Square,
        APGDTargeted,
        FABTargeted,
    ]
    assert [getattr(stage, "restarts", None) for stage in plus.stages[:3]] == [5, 5, 5]
    rand = resolve(AutoAttack(version="rand"))
    assert rand.draws == 20 and rand.title == "autoattack_rand"
    assert rand.stages == (APGD(draws=20), APGD(loss="dlr", draws=20))
    quick = resolve(Quick())
    assert quick.title == "quick" and len(quick.stages) == 2


@pytest.mark.parametrize(
    "options, says",
    [
        ({"classes": 8}, "7 targets instead of 9, as there are 8 classes"),
        ({"classes": 3}, "not defined for 3 classes, in apgd_targeted"),
        ({"shape": (64, 2)}, "no images"),
        ({"shape": (64,)}, "no images"),
        ({"threat": Threat(eps=0.1, bounds=(-1.0, 1.0))}, r"\[-1, 1\] instead of \[0, 1\]"),
        ({"threat": Threat(eps=0.1, window=Window(length=3))}, "restricted"),
        ({"threat": Threat(eps=0.1, band=Band(high=0.3))}, "FAB is left out"),
        ({"masked": True}, "mask"),
    ],
    ids=str,
)
def test_a_deviation_is_named_and_never_called_standard(options, says):
    found = resolve(AutoAttack(), **options)
    assert found.title == "autoattack_adapted"
    assert any(re.search(says, line) for line in found.deviations)
    assert not any("standard" in line for line in (found.title, found.label))


def test_suites_by_name():
    assert [suite(name).label for name in SUITES] == list(SUITES)
    with pytest.raises(ValueError, match="Did you mean 'autoattack_standard'"):
        suite("autoattack_standart")


def linear(classes, shape, seed=0):
    """A linear model whose classes are far from equal in number of near rivals."""
    d = int(torch.tensor(shape).prod())
    w = Noise(seed).normal(classes, d) / d**0.5
    b = -w.sum(1) / 2

    def model(x):
        return 8 * (x.flatten(1) @ w.T + b)

    return model, w


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10])
@pytest.mark.parametrize("shape", [(12,), (6, 2), (1, 3, 4)], ids=str)
def test_any_number_of_classes_and_any_shape(classes, shape):
    """Breakable if and only if |z_y - z_c| < eps |w_y - w_c|_1 for some class c."""
    model, w = linear(classes, shape)
    x = Noise(1).uniform(24, *shape, low=0.3, high=0.7)
    logits = model(x)
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    reach = 8 * (w[y][:, None] - w[None]).abs().sum(2)
    ratio = (gaps / reach.clamp(min=1e-9)).masked_fill(reach < 1e-6, torch.inf).amin(1)
    eps = float(ratio.median())
    sure = (ratio / eps - 1).abs() > 0.02  # away from the boundary
    small = Ensemble(
        stages=(
            APGD(steps=30),
            APGDTargeted(steps=30),
            FABTargeted(steps=20),
            Square(queries=100),
        )
    )
    result = evaluate(model, x, y, small, Threat(eps=eps))
    held = torch.tensor(result.robust)
    assert torch.equal(held[sure], (ratio > eps)[sure])
    assert result.clean_accuracy == 1.0


def test_a_batch_of_one_and_other_batch_sizes(network):
    model, x, y = network
    small = Ensemble(stages=(APGD(steps=8), APGDTargeted(steps=8), FABTargeted(steps=5)))
    results = [
        evaluate(model, x, y, small, Threat(eps=0.03), batch_size=size) for size in (60, 37, 1)
    ]
    assert results[0].survived == results[1].survived == results[2].survived
    assert results[0].suites["ensemble"].stages == results[2].suites["ensemble"].stages
