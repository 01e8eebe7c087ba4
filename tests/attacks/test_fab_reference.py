"""FAB against the reference's distances and verdicts, in batches of any size."""

import numpy as np
import pytest
import torch

from robustssm.attacks.fab import FABTargeted
from robustssm.attacks.threat import Threat
from robustssm.ops import divergence
from tests.attacks.fab_searches import BOTH, NORMS, fooled, net_and_data, search
from tests.data import reference_fab

EPS = {"linf": (0.1, 0.15, 0.2, 0.25), "l2": (0.3, 0.5, 0.75, 1.0), "l1": (0.5, 1.0, 2.0, 4.0)}


def compare_with_reference(norm, kind, steps, count):
    """Distances of the first examples; returns those that differ by more than 1e-5."""
    net, x, y, _ = net_and_data()
    stored = np.load(reference_fab.STORED)
    rows = torch.from_numpy(stored["examples"].astype(np.int64))[:count]
    theirs = torch.from_numpy(stored[f"{norm}_{steps}_{kind}"])[:count].double()
    attack = BOTH[kind](steps=steps, stop_early=False)
    found = search(attack, net, x[rows], y[rows], Threat(norm=norm, eps=1e-9))
    ours = -found.loss
    assert divergence.wrong(net(found.points), y[rows]).all()
    for eps in EPS[norm]:
        assert torch.equal(ours <= eps, theirs <= eps), f"flags at {eps}"
    differ = (ours - theirs).abs() > 1e-5
    if kind == "targeted":
        target = torch.from_numpy(stored[f"{norm}_{steps}_target"])[:count]
        assert torch.equal(found.part[~differ], target[~differ].long())
    return differ.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_distances_and_flags_are_those_of_the_reference(norm, kind):
    """The reference alone gives our distance for the one (of l1) that differs in its batch."""
    assert len(compare_with_reference(norm, kind, 20, 50)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_all_distances_of_a_full_run_are_those_of_the_reference(norm, kind):
    """Rounding at a kink of the net sends a few of the 494 searches another way."""
    assert len(compare_with_reference(norm, kind, 100, 500)) <= 5


def verdicts(norm, eps):
    """Whom the reference's third stage saw, and who of them was still right after it."""
    flags = net_and_data()[3]
    name = {"linf": "Linf", "l2": "L2"}[norm]
    before, after = (flags[f"survive_{name}_{eps}_{stage}"] for stage in ("apgd-t", "fab-t"))
    return before.nonzero().squeeze(1), after


@pytest.mark.slow
@pytest.mark.parametrize("norm, eps", [("linf", 0.15), ("l2", 1.0)])
def test_verdicts_on_survivors_are_those_of_the_reference(norm, eps):
    net, x, y, _ = net_and_data()
    rows, after = verdicts(norm, eps)
    flags = fooled(FABTargeted(), net, x[rows], y[rows], Threat(norm=norm, eps=eps))
    assert torch.equal(~flags, after[rows])


@pytest.mark.parametrize("norm, eps", [("linf", 0.15), ("l2", 1.0)])
def test_verdicts_on_the_nearest_survivors_are_those_of_the_reference(norm, eps):
    net, x, y, _ = net_and_data()
    rows, after = verdicts(norm, eps)
    stored = np.load(reference_fab.STORED)
    distance = torch.full((len(x),), torch.inf)
    distance[torch.from_numpy(stored["examples"].astype(np.int64))] = torch.from_numpy(
        stored[f"{norm}_100_targeted"]
    )
    rows = rows[distance[rows].argsort()[:10]]
    flags = fooled(FABTargeted(), net, x[rows], y[rows], Threat(norm=norm, eps=eps))
    assert torch.equal(~flags, after[rows])


@pytest.mark.parametrize("norm, eps", [("linf", 0.17), ("l2", 0.7), ("l1", 1.4)])
@pytest.mark.parametrize("kind", BOTH)
def test_the_same_are_fooled_however_it_batches_and_stops(kind, norm, eps):
    net, x, y, _ = net_and_data()
    x, y = x[:10], y[:10]
    more = {"steps": 4, "restarts": 2} | ({"targets": 3} if kind == "targeted" else {})
    threat = Threat(norm=norm, eps=eps)
    usual = fooled(BOTH[kind](**more), net, x, y, threat)
    assert 1 < usual.sum() < 9, "some must be fooled, some not"
    for other in ({"stop_early": False}, {"together": False}, {"size": 5}, {"size": 1}):
        other = dict(other)
        size = other.pop("size", 500)
        flags = fooled(BOTH[kind](**more, **other), net, x, y, threat, size=size)
        assert torch.equal(flags, usual), other


@pytest.mark.slow
@pytest.mark.parametrize("norm, eps", [("linf", 0.15), ("l2", 1.0), ("l1", 1.4)])
def test_batch_sizes_change_no_flag(norm, eps):
    net, x, y, _ = net_and_data()
    attack, threat = FABTargeted(steps=20, restarts=2), Threat(norm=norm, eps=eps)
    usual = fooled(attack, net, x, y, threat)
    for size in (100, 37, 1):
        assert torch.equal(fooled(attack, net, x, y, threat, size=size), usual), size
