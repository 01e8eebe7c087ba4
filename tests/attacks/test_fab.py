"""FAB: optima of linear models, and laws of units, masks, costs and restarts."""

import dataclasses

import numpy as np
import pytest
import torch

from robustssm.attacks.access import Access
from robustssm.attacks.fab import FAB, FABTargeted
from robustssm.attacks.restrictions import Band
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops import hyperplanes
from tests.attacks.fab_searches import BOTH, NORMS, fooled, net_and_data, search


class Affine:
    """logits = W x + b in float64, for examples of any shape, with inputs that are all right."""

    def __init__(self, classes, shape, *, seed=0, low=0.0, high=1.0):
        noise, d = Noise(seed), int(np.prod(shape))
        self.w = noise.normal(classes, d, dtype=torch.float64)
        self.b = -(self.w * (low + high) / 2).sum(1)
        self.x = noise.uniform(12, *shape, low=low, high=high, dtype=torch.float64)
        self.y = self(self.x).argmax(1)

    def __call__(self, x):
        return x.flatten(1) @ self.w.T + self.b

    def nearest(self, norm, low, high, *, tolerance=1e-9):
        """The exact distance to the nearest misclassified point of the box, per example."""
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
        flat, best = self.x.flatten(1), self.x.new_full((len(self.x),), torch.inf)
        logits = self(self.x)
        for c in range(len(self.w)):
            w = self.w[c] - self.w[self.y]
            lead = logits.gather(1, self.y[:, None])[:, 0] - logits[:, c]
            ends = {"low": torch.full_like(flat, low), "high": torch.full_like(flat, high)}
            move = hyperplanes.step(flat, w, lead, norm=norm, **ends)
            met = ((w * move).sum(1) - lead).abs() < tolerance
            length = torch.where(met & (self.y != c), move.norm(order, dim=1), torch.inf)
            best = torch.minimum(best, length)
        return best


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_far_from_the_bounds_falls_at_its_margin_over_the_dual_norm(norm, kind):
    """eta and beta leave at most 0.6 % above the distance |margin| / |w|_dual."""
    model = Affine(4, (8,))
    logits = model(model.x)
    rival = logits.scatter(1, model.y[:, None], torch.nan)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    slopes = (model.w[None] - model.w[model.y][:, None]).norm(dual, dim=2)
    exact = ((logits.gather(1, model.y[:, None]) - rival) / slopes).nan_to_num(torch.inf).amin(1)
    wide = {"norm": norm, "bounds": (-100.0, 100.0)}
    attack = BOTH[kind](steps=20, stop_early=False)
    found = search(attack, model, model.x, model.y, Threat(eps=1e-9, **wide))
    assert ((-found.loss > exact) & (-found.loss < 1.006 * exact)).all()
    for one in range(2):
        for share, breaks in ((0.99, False), (1.01, True)):
            threat, row = Threat(eps=share * float(exact[one]), **wide), slice(one, one + 1)
            flags = fooled(BOTH[kind](steps=20), model, model.x[row], model.y[row], threat)
            assert bool(flags) == breaks


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 10])
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_nearest_point_in_the_box_for_any_number_of_classes(norm, kind, classes):
    model = Affine(classes, (6,), seed=classes)
    exact = model.nearest(norm, 0.0, 1.0)
    attack = BOTH[kind](steps=12, stop_early=False)
    threat = Threat(norm=norm, eps=1e-9)
    found = search(attack, model, model.x, model.y, threat)
    reachable = exact.isfinite()
    assert reachable.sum() > 6
    ours = -found.loss
    assert (ours >= exact - 1e-9).all()
    assert (ours <= 1.01 * exact)[reachable].all()
    assert (ours.isinf() == (found.part == -1)).all()
    highest = min(9, classes - 1) if kind == "targeted" else 1
    assert found.part.max() < highest
    if classes in (2, 4):
        apart = dataclasses.replace(attack, together=False)
        assert torch.equal(search(apart, model, model.x, model.y, threat).part, found.part)


@pytest.mark.parametrize("shape", [(6,), (5,), (5, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_other_bounds_are_the_unit_cube_in_other_units(norm, kind, shape):
    d = int(np.prod(shape))
    first, second = (Noise(k).normal(a, b).double() for k, a, b in ((1, d, 9), (2, 9, 4)))

    def unit(x):
        return torch.tanh(3 * (x.flatten(1) - 0.5) @ first) @ second

    def other(x):
        return unit((x + 1) / 2)

    x = Noise(3).uniform(10, *shape, dtype=torch.float64)
    y, attack = unit(x).argmax(1), BOTH[kind](steps=6, restarts=2)
    eps = {"linf": 0.02, "l2": 0.03, "l1": 0.1}[norm]
    here = search(attack, unit, x, y, Threat(norm=norm, eps=eps))
    wide = Threat(norm=norm, eps=2 * eps, bounds=(-1.0, 1.0))
    there = search(attack, other, 2 * x - 1, y, wide)
    assert 0 < here.wrong.sum() < 10, "some must be fooled, some not"
    assert torch.equal(here.wrong, there.wrong) and torch.equal(here.part, there.part)
    torch.testing.assert_close(there.points, 2 * here.points - 1, rtol=0, atol=1e-9)
    torch.testing.assert_close(there.loss, 2 * here.loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_masked_never_moves_and_the_rest_does_as_well_as_alone(norm, kind):
    model = Affine(4, (10,), seed=3)
    free = torch.tensor([True, False, True, True, False, True, True, True, False, True])
    mask = free.expand(12, 10)
    alone = Affine(4, (10,), seed=3)
    alone.b = model.b + model.x[:, ~free] @ model.w[:, ~free].T  # one bias per example
    alone.w, alone.x = model.w[:, free], model.x[:, free]
    seen = []

    def spy(z):
        seen.append(z.detach().clone())
        return model(z)

    attack = BOTH[kind](steps=12, stop_early=False, together=False)
    found = search(attack, spy, model.x, model.y, Threat(norm=norm, eps=1e-9), mask=mask)
    assert all(torch.equal(z[:, ~free], model.x[:, ~free]) for z in seen)
    apart = search(attack, alone, alone.x, model.y, Threat(norm=norm, eps=1e-9))
    assert apart.loss.isfinite().sum() > 6
    torch.testing.assert_close(found.points[:, free], apart.points, rtol=0, atol=1e-9)
    assert torch.equal(found.part, apart.part)


@pytest.mark.parametrize("kind", BOTH)
def test_units_of_the_logits_do_not_matter(kind):
    """Gradients of 1e-20, whose squares are 0 in float32."""
    net, x, y, _ = net_and_data()
    for norm in NORMS:
        threat, attack = Threat(norm=norm, eps=1e-9), BOTH[kind](steps=5)
        usual = search(attack, net, x[:8], y[:8], threat)
        small = search(attack, lambda z: net(z) * 2.0**-66, x[:8], y[:8], threat)
        torch.testing.assert_close(small.points, usual.points, rtol=0, atol=1e-5)
        assert (usual.points != x[:8]).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_a_flat_or_broken_gradient_leaves_the_input(norm, kind):
    x, y = Noise(0).uniform(3, 4), torch.zeros(3, dtype=torch.int64)
    level = torch.tensor([1.0, 0.0, 0.5])

    def flat(z):
        return level + 0 * z.sum(1, keepdim=True)

    def broken(z):
        return level + (z - z.detach()).abs().sum(1, keepdim=True).sqrt()  # slope 0 times infinity

    def steep(z):
        return level + torch.tensor([0.0, 1.0, 0.0]) * (z - z.detach()).sqrt().sum(1, keepdim=True)

    for model in (flat, broken, steep):
        seen = []

        def spy(z, model=model, seen=seen):
            seen.append(z.detach().clone())
            return model(z)

        threat = Threat(norm=norm, eps=0.1)
        search(BOTH[kind](steps=3), spy, x, y, threat)
        assert all(torch.equal(z, x.repeat(len(z) // 3, 1)) for z in seen)
        found = search(BOTH[kind](steps=3, restarts=2), model, x, y, threat)
        assert torch.equal(found.points, x) and not found.wrong.any()
        assert (found.loss == -torch.inf).all() and (found.part == -1).all()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_classes_that_tie_or_cannot_be_reached_do_not_disturb_the_others(norm, kind):
    """Class 2 repeats class 0, class 3 is masked out with minus infinity."""
    pair, seen = Affine(2, (6,), seed=4), []

    def model(z):
        seen.append(z.detach().clone())
        logits = pair(z)
        never = torch.full_like(logits[:, :1], -torch.inf)
        return torch.cat((logits, logits[:, :1], never), 1)

    rows = (pair.y == 0) & pair.nearest(norm, 0.0, 1.0).isfinite()
    x, y = pair.x[rows], pair.y[rows]
    assert len(x) > 2
    attack, threat = BOTH[kind](steps=8, stop_early=False), Threat(norm=norm, eps=1e-9)
    alone, found = search(attack, pair, x, y, threat), search(attack, model, x, y, threat)
    torch.testing.assert_close(found.points, alone.points, rtol=0, atol=1e-12)
    assert found.loss.isfinite().all()
    if kind == "targeted":  # the last third of the rows is after class 3
        assert torch.equal(seen[-1][2 * len(x) :], x)


def test_what_is_wrong_from_the_start_costs_one_pass():
    model = Affine(4, (6,))
    access = Access(model)
    found = search(FAB(), access, model.x, (model.y + 1) % 4, Threat(eps=0.1))
    assert found.wrong.all() and torch.equal(found.points, model.x) and (found.loss == 0).all()
    assert (access.ledger.forwards, access.ledger.backwards) == (12, 0)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("classes", [2, 5, 12])
@pytest.mark.parametrize("kind", BOTH)
def test_costs_what_it_says(kind, classes, together):
    model = Affine(classes, (6,), seed=1)
    access = Access(model)
    attack = BOTH[kind](steps=4, restarts=3, stop_early=False, together=together)
    found = search(attack, access, model.x, model.y, Threat(eps=1e-9))
    assert not found.wrong.any()
    forward, backward = attack.passes(classes)
    assert access.ledger.forwards == forward * len(model.x)
    assert access.ledger.backwards == backward * len(model.x)


def test_an_example_stops_with_the_first_of_its_targets_that_falls():
    """The second class is near; the third is never reached, and lies the other way."""
    w = torch.tensor([[0.0] * 4, [1.0] * 4, [-0.01] * 4], dtype=torch.float64)

    def model(z):
        return z @ w.T - torch.tensor([0.0, 2.5, 5.0], dtype=torch.float64)

    x = torch.full((3, 4), 0.5, dtype=torch.float64)
    y, passes = torch.zeros(3, dtype=torch.int64), []
    for early in (True, False):
        access = Access(model)
        attack = FABTargeted(steps=50, stop_early=early)
        found = search(attack, access, x, y, Threat(eps=0.2))
        assert found.wrong.all() and (found.part == 0).all()
        passes.append(access.ledger.forwards / 3)
    assert passes == [1 + 2 * 2, 1 + 2 * 2 * 50]


@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 0.5), ("l1", 1.0)])
@pytest.mark.parametrize("kind", BOTH)
def test_restarts_leave_a_point_without_gradient_and_spare_who_is_fooled(kind, norm, eps):
    """Flat at the input, where the rectifiers begin; the second half of the examples is not."""
    w = Noise(1).normal(6, dtype=torch.float64).abs() + 0.5
    x = torch.full((8, 6), 0.5, dtype=torch.float64)
    x[4:] += 0.01
    y, sizes = torch.zeros(8, dtype=torch.int64), []

    def model(z):
        sizes.append(len(z))
        rival = 20 * eps * (w * (z - 0.5).relu()).sum(1) - 10 * eps**2
        return torch.stack((torch.zeros_like(rival), rival), 1)

    threat = Threat(norm=norm, eps=eps)
    first = search(BOTH[kind](steps=10), model, x, y, threat)
    assert first.wrong.tolist() == [False] * 4 + [True] * 4
    sizes.clear()
    found = search(BOTH[kind](steps=10, restarts=3), model, x, y, threat)
    assert found.wrong.all() and sizes[-1] <= 4
    assert torch.equal(found.points[4:], first.points[4:])
    if kind == "untargeted":
        assert (found.part[:4] > 0).all() and (found.part[4:] == 0).all()
    other = search(BOTH[kind](steps=10, restarts=3), model, x, y, threat, seed=5)
    assert torch.equal(found.points[4:], other.points[4:]), "the first run has nothing random"
    assert not torch.equal(found.points[:4], other.points[:4])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", NORMS)
def test_rounding_does_not_hold_a_search_at_the_boundary(norm, kind):
    """With eta = 1 every step ends where both logits are equal, up to rounding."""
    model = Affine(2, (40,), seed=2)
    model.w, model.b, model.x = model.w.float(), model.b.float(), model.x.float()
    attack, threat = BOTH[kind](steps=10, eta=1.0, stop_early=False), Threat(norm=norm, eps=1e-9)
    found = search(attack, model, model.x, model.y, threat)
    assert found.loss.isfinite().all()
    exact = model.nearest(norm, 0.0, 1.0, tolerance=1e-4)
    assert (-found.loss < 1.001 * exact).all()


@pytest.mark.parametrize("norm, order", [("linf", torch.inf), ("l2", 2), ("l1", 1)])
def test_random_starts_are_half_of_eps_away_within_the_mask(norm, order):
    model = Affine(4, (10,), low=0.4, high=0.6)
    starts = []

    def spy(z):
        if z.requires_grad:
            starts.append(z.detach().clone())
        return model(z)

    mask = torch.arange(10).expand(12, 10) < 7
    threat = Threat(norm=norm, eps=1e-3)
    search(FABTargeted(steps=1, restarts=2), spy, model.x, model.y, threat, mask=mask)
    assert len(starts) == 2
    moved = starts[1].view(3, -1, 10) - starts[0].view(3, -1, 10)[:, : starts[1].shape[0] // 3]
    length = moved.norm(order, dim=2)
    torch.testing.assert_close(length, torch.full_like(length, 5e-4), rtol=1e-9, atol=0)
    assert (moved[..., 7:] == 0).all()
    assert (moved[0] != moved[1]).any(), "targets have starts of their own"


@pytest.mark.parametrize("kind", BOTH)
def test_a_band_is_refused_in_words(kind):
    model = Affine(4, (6,))
    threat = Threat(eps=0.1, norm="l2", band=Band(high=0.5))
    with pytest.raises(Inapplicable, match=r"must know .* norm, l2.*; got frequencies.*\. Run"):
        fooled(BOTH[kind](), model, model.x, model.y, threat)


def test_labels_say_what_may_change_the_verdict():
    assert [FAB().label, FABTargeted().label] == ["fab", "fab_targeted"]
    assert FAB(restarts=5, together=False, stop_early=False).label == "fab-x5"
    assert FAB(steps=20, restarts=5, eta=1.1).label == "fab-20x5-eta=1.1"
    assert FABTargeted(steps=20, targets=3).label == "fab_targeted-20-targets=3"
