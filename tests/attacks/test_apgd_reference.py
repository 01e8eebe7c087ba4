"""Auto-PGD against stored runs of the reference implementation; see tests/data/README.md."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from robustssm.attacks import apgd_steps
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.ops import divergence
from robustssm.ops.balls import over
from tests.attacks.digits_net import digits_net

STORED = Path(__file__).parents[1] / "data" / "reference_apgd.npz"
EPS = {"linf": 0.15, "l2": 1.0, "l1": 2.0}
POINTS = 40


class Replayed(Noise):
    """The draws of the reference: from one generator with its seed, in the order of its runs."""

    def __init__(self, *, unused: int = 0):
        super().__init__(0)
        self._generator = torch.Generator().manual_seed(0)
        self._unused = unused  # with larger radii, every phase draws a start that it does not use

    def fork(self, *path):
        return self

    def select(self, rows):
        return self

    def rows(self, count):
        return self

    def spread(self, parts):
        return self

    def uniform(self, *, like, low, high):
        assert (low, high) == (-1, 1)
        return 2 * torch.rand(like.shape, generator=self._generator) - 1

    def normal(self, *, like):
        drawn = torch.randn(1 + self._unused, *like.shape, generator=self._generator)
        return drawn[0]


@functools.cache
def digits():
    return digits_net()


@functools.cache
def stored():
    values = np.load(STORED)
    return {name: torch.from_numpy(values[name]) for name in values.files}


def flags(name):
    known = digits()[3]
    return known[name] if name in known else stored()[name]


def search(attack, x, y, norm, noise):
    """Whether each example was fooled, and the candidates; an attack never claims too much."""
    net = digits()[0]
    found = attack.search(net, x, y, threat=Threat(norm=norm, eps=EPS[norm]), noise=noise)
    wrong = divergence.wrong(net(found.points), y)
    assert torch.equal(wrong, found.part >= 0)
    return wrong, found


def differences(attack, norm, before, after, *, unused=0):
    """How many verdicts differ from the stored ones, on the examples that are right before."""
    _, x, y, _ = digits()
    rows = flags(before)
    wrong, _ = search(attack, x[rows], y[rows], norm, Replayed(unused=unused))
    return int((wrong == flags(after)[rows]).sum())


CLEAN = "survive_L2_1.0_clean"
CE, ONE_BY_ONE = APGD(), APGDTargeted(together=False)
PHASED = APGD(large_eps=True)
FIVE = APGDTargeted(large_eps=True, targets=5, together=False)


@pytest.mark.parametrize(
    "attack, norm, before, after",
    [
        (CE, "linf", "survive_Linf_0.15_clean", "survive_Linf_0.15_apgd-ce"),
        (CE, "l2", CLEAN, "survive_L2_1.0_apgd-ce"),
        (APGD(loss="dlr"), "linf", CLEAN, "survive_linf_dlr"),
        (APGD(loss="dlr"), "l2", CLEAN, "survive_l2_dlr"),
        (ONE_BY_ONE, "l2", "survive_L2_1.0_apgd-ce", "survive_L2_1.0_apgd-t"),
        (PHASED, "l1", CLEAN, "survive_l1_ce"),
        pytest.param(FIVE, "l1", "survive_l1_ce_5", "survive_l1_t", marks=pytest.mark.slow),
        pytest.param(
            ONE_BY_ONE,
            "linf",
            "survive_Linf_0.15_apgd-ce",
            "survive_Linf_0.15_apgd-t",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["linf-ce", "l2-ce", "linf-dlr", "l2-dlr", "l2-t", "l1-ce", "l1-t", "linf-t"],
)
def test_fools_whom_the_reference_fools(attack, norm, before, after):
    assert flags(before).sum() > flags(after).sum() > 0
    unused = 3 if attack.large_eps else 0
    assert differences(attack, norm, before, after, unused=unused) == 0


@pytest.mark.slow
def test_restarts_under_l1_fool_as_many_as_the_reference():
    """Rounding moves single verdicts, and later runs of the reference then see other noise."""
    _, x, y, _ = digits()
    attack, rows = APGD(large_eps=True, restarts=5), flags(CLEAN)
    wrong, found = search(attack, x[rows], y[rows], "l1", Replayed(unused=3))
    assert abs(int(wrong.sum()) - int((~flags("survive_l1_ce_5")[rows]).sum())) <= 5
    assert set(found.part.tolist()) == {-1, 0, 1, 2, 3, 4}


def furthest(name, norm, attack, *, unused=0):
    """The largest difference of any coordinate from the reference's points, per example."""
    _, x, y, _ = digits()
    rows = flags(CLEAN).nonzero().squeeze(1)[:POINTS]
    _, found = search(attack, x[rows], y[rows], norm, Replayed(unused=unused))
    return (found.points - stored()[f"points_{name}"]).flatten(1).abs().amax(1)


VARIANTS = {
    "ce": APGD(drop=False),
    "dlr": APGD(loss="dlr", drop=False),
    "t": APGDTargeted(targets=1, drop=False),
}


@pytest.mark.parametrize("loss", VARIANTS)
def test_finds_the_points_of_the_reference_under_linf_bit_for_bit(loss):
    assert furthest(f"linf_{loss}", "linf", VARIANTS[loss]).max() == 0


@pytest.mark.parametrize("loss", VARIANTS)
def test_finds_the_points_of_the_reference_under_l2(loss, monkeypatch):
    """Once computed in its order of rounding; in ours, few go to another place on the way."""
    assert (furthest(f"l2_{loss}", "l2", VARIANTS[loss]) < 1e-6).float().mean() >= 0.75

    def unit(v, norm="l2"):
        return v / (over(v.square().flatten(1).sum(1).sqrt(), v) + 1e-12)

    def into(region, points):
        delta = points - region.x
        length = over(delta.square().flatten(1).sum(1).sqrt(), delta)
        return (region.x + unit(delta) * length.clamp(max=region.eps)).clamp(0, 1)

    def start(region, noise):
        return (region.x + region.eps * unit(noise.normal(like=region.x))).clamp(0, 1)

    monkeypatch.setattr(apgd_steps, "_into", into)
    monkeypatch.setattr(apgd_steps, "start", start)
    monkeypatch.setattr(apgd_steps.balls, "ascend", unit)
    assert furthest(f"l2_{loss}", "l2", VARIANTS[loss]).max() < 1e-6


@pytest.mark.parametrize(
    "name, attack",
    [
        ("l1_ce", APGD(large_eps=True, drop=False)),
        ("l1_ce_plain", APGD(drop=False)),
        ("l1_t", APGDTargeted(large_eps=True, targets=1, drop=False)),
    ],
    ids=["ce", "ce-plain", "t"],
)
def test_finds_the_points_of_the_reference_under_l1(name, attack):
    gaps = furthest(name, "l1", attack, unused=3 if attack.large_eps else 0)
    assert (gaps < 1e-5).float().mean() >= 0.9
