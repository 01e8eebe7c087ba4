"""Square against itself with and without savings, in closed form, and its laws."""

import numpy as np
import pytest
import torch

from robustssm.attacks.access import Access
from robustssm.attacks.restrictions import Band
from robustssm.attacks.square import Square
from robustssm.attacks.square_canvas import Canvas
from robustssm.attacks.square_mounds import Mounds
from robustssm.attacks.square_proposals import Extremes
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops import divergence
from tests.attacks.square_queries import PLAIN, Recorded


class Bumpy:
    """A network whose loss has many local minima within reach; float64, 3 classes."""

    def __init__(self, size):
        self.first = 5 * Noise(0).normal(size, 16, dtype=torch.float64) / size**0.5
        self.second = Noise(1).normal(16, 3, dtype=torch.float64)

    def __call__(self, points):
        hidden = (points.flatten(1) @ self.first - self.first.sum(0) / 2).tanh()
        return hidden @ self.second

    def problem(self, count, shape):
        x = Noise(2).uniform(count, *shape, dtype=torch.float64)
        return x, self(x).argmax(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 6, 9), (30, 2)], ids=str)
@pytest.mark.parametrize(
    "norm, eps, queries", [("linf", 0.07, 400), ("l2", 0.6, 120), ("l1", 2, 40)]
)
def test_savings_change_nothing(norm, eps, queries, shape):
    model = Bumpy(int(np.prod(shape)))
    x, y = model.problem(16, shape)
    runs = [
        Square(queries=queries, lookahead=ahead, remember=remember)(
            model, x, y, threat=Threat(norm=norm, eps=eps), noise=Noise(3)
        )
        for ahead, remember in [(1, False), (1, True), (8, True), (16, True), (8, False)]
    ]
    assert 0 < int((model(runs[0]).argmax(1) != y).sum()) < 16
    for run in runs[1:]:
        if norm == "linf":
            assert torch.equal(run, runs[0])
        torch.testing.assert_close(run, runs[0], rtol=0, atol=1e-12)


def test_restarts_are_other_runs_on_those_still_right():
    model = Bumpy(64)
    x, y = model.problem(60, (1, 8, 8))
    fooled = []
    for restarts in (1, 4):
        attack = Square(queries=20, restarts=restarts)
        points = attack(model, x, y, threat=Threat(eps=0.04), noise=Noise(3))
        fooled.append(model(points).argmax(1) != y)
    one, four = fooled
    assert four[one].all()
    assert one.sum() < four.sum() < 60


class Slope:
    """Four linear classes, two of them hopeless; class 0 wins by x w + b. Float64."""

    def __init__(self, size, ratios, norm, eps):
        self.w = Noise(11).normal(size, dtype=torch.float64)
        dual = self.w.norm(p={"linf": 1, "l2": 2}[norm])
        centre = torch.full((size,), 0.5, dtype=torch.float64)
        wanted = torch.tensor(ratios, dtype=torch.float64) * eps * dual
        self.b = -centre @ self.w
        self.x = centre + wanted[:, None] * self.w / self.w.square().sum()
        self.y = torch.zeros(len(ratios), dtype=torch.int64)

    def __call__(self, points):
        win = points.flatten(1) @ self.w + self.b
        return torch.stack((win, 0 * win, win - 100, 0 * win - 100), 1)


RATIOS = (0.2, 0.5, 0.8, 0.95, 0.999, 1.001, 1.05, 1.5)


@pytest.mark.parametrize("shape", [(8,), (4, 2), (1, 1, 8)])
def test_breaks_what_can_be_broken_under_linf_and_nothing_else(shape):
    problem = Slope(8, RATIOS, "linf", 0.05)
    x = problem.x.reshape(-1, *shape)
    points = Square(queries=700)(
        problem, x, problem.y, threat=Threat(eps=0.05, bounds=(-5, 5)), noise=Noise(0)
    )
    broken = divergence.wrong(problem(points), problem.y).tolist()
    if len(shape) == 3:  # the last column of an image is moved by the start alone
        assert broken[0] and not any(broken[5:])
    else:
        assert broken == [ratio < 1 for ratio in RATIOS]


@pytest.mark.parametrize("shape", [(24,), (12, 2), (1, 4, 6), (1, 1, 24)])
def test_breaks_what_is_clear_under_l2_and_never_the_impossible(shape):
    problem = Slope(24, RATIOS, "l2", 0.3)
    x = problem.x.reshape(-1, *shape)
    points = Square(queries=2000)(
        problem, x, problem.y, threat=Threat(norm="l2", eps=0.3, bounds=(-5, 5)), noise=Noise(0)
    )
    broken = divergence.wrong(problem(points), problem.y).tolist()
    assert broken[0] and broken[1] and not any(broken[5:])


SHAPES = [(6,), (6, 2), (2, 5, 5), (1, 1, 9), (3, 1)]


@pytest.mark.parametrize("norm, classes", [("linf", 2), ("l2", 2), ("l2", 3), ("l1", 3)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_needs_no_gradient_and_takes_any_shape(shape, norm, classes):
    weight = Noise(1).normal(int(np.prod(shape)), classes)

    @torch.no_grad()
    def steps(points):  # a staircase has gradient zero everywhere
        return ((points * 8 - 4).round().flatten(1) @ weight).to(torch.bfloat16)

    x = Noise(2).uniform(20, *shape)
    y = steps(x).argmax(1)
    threat = Threat(norm=norm, eps={"linf": 0.2, "l2": 0.8, "l1": 1.5}[norm])
    points = Square(queries=60)(steps, x, y, threat=threat, noise=Noise(3))
    assert points.dtype == torch.float32
    assert int(divergence.wrong(steps(points).float(), y).sum()) >= 5
    alone = Square(queries=60)(steps, x[:1], y[:1], threat=threat, noise=Noise(3))
    torch.testing.assert_close(alone, points[:1])


def test_an_example_leaves_as_soon_as_it_is_misclassified():
    def numb(points):  # NaN once the first value has moved up, right otherwise
        up = points[:, 0, 0, 0] > 0.55
        right = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(points), 3)
        return torch.where(up[:, None], torch.nan, right)

    x, y = torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    model = Recorded(numb)
    points = Square(queries=200, **PLAIN)(model, x, y, threat=Threat(eps=0.1), noise=Noise(0))
    assert (points[:, 0, 0, 0] > 0.55).all()
    sizes = [len(call) for call in model.calls]
    assert sizes[0] == 6 and sizes == sorted(sizes, reverse=True) and len(sizes) < 200
    nans = sum(int(numb(call).isnan().any(1).sum()) for call in model.calls)
    assert nans == 6, "a fooled example was asked again"


def test_an_example_on_the_boundary_is_not_yet_fooled():
    def edge(points):  # equal logits, of which argmax takes the first, until all values are up
        win = torch.where((points.flatten(1) > 0.5).all(1), -1.0, 0.0)
        return torch.stack((win, torch.zeros_like(win)), 1)

    x, y = torch.full((4, 5), 0.5), torch.zeros(4, dtype=torch.int64)
    points = Square(queries=3000)(edge, x, y, threat=Threat(eps=0.1), noise=Noise(0))
    assert (divergence.wrong(edge(points), y) == (points > 0.5).all(1)).all()
    model = Recorded(edge)
    Square(queries=50, **PLAIN)(model, x[:1], y[:1], threat=Threat(eps=0.1), noise=Noise(1))
    assert len(model.calls) > 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (20, 3)], ids=str)
def test_a_mask_is_kept_and_searched(shape, norm):
    model = Bumpy(int(np.prod(shape)))
    x, y = model.problem(20, shape)
    mask = Noise(7).uniform(20, *shape) > 0.5
    threat = Threat(norm=norm, eps={"linf": 0.3, "l2": 1.5, "l1": 6}[norm])
    points = Square(queries=150)(model, x, y, threat=threat, noise=Noise(3), mask=mask)
    assert torch.equal(points[~mask], x[~mask])
    assert int((model(points).argmax(1) != y).sum()) >= 5


def test_mass_moves_between_the_windows_also_under_a_mask():
    """Where the whole radius is in use, coordinates outside both windows stay as they are."""
    x = torch.full((30, 1, 8, 8), 0.5, dtype=torch.float64)
    mask = torch.arange(8).expand_as(x) % 2 == 0
    region = Threat(norm="l2", eps=0.1).regions(x, mask=mask)[0]
    noise = Noise(0, torch.arange(30))
    stretch = next(Canvas((1, 8, 8)).stretches(5, share=0.1, odd=True, longest=9))
    mounds, rows = Mounds(region, noise, stretch), torch.arange(30)
    start, first = Mounds.start(region, noise.fork("start")), torch.zeros_like(rows)
    found = mounds.propose(start, rows, first)
    inside = [
        mounds.canvas.inside(mounds.tops[:, 0, window], mounds.lefts[:, 0, window], stretch.side)
        for window in (0, 1)
    ]
    kept = ~(inside[0] | inside[1])
    assert kept.any() and not torch.allclose(found, start)
    torch.testing.assert_close(found[kept], start[kept], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (20, 2)], ids=str)
def test_a_band_is_kept_and_searched_with_and_without_savings(shape, norm):
    model = Bumpy(int(np.prod(shape)))
    x, y = model.problem(8, shape)
    threat = Threat(norm=norm, eps={"linf": 0.3, "l2": 1.5}[norm], band=Band(high=0.5))
    (region,) = threat.regions(x)
    attack, access = Square(queries=40), Access(lambda points: model(region.inputs(points)))
    found = attack.perturb(access, x, y, region=region, noise=Noise(3))
    delta = found.points - x
    torch.testing.assert_close(threat.band.filter(delta), delta, rtol=0, atol=1e-9)
    assert found.wrong.any()
    plain = Square(queries=40, **PLAIN).perturb(access, x, y, region=region, noise=Noise(3))
    torch.testing.assert_close(plain.points, found.points, rtol=0, atol=1e-9)


def test_the_draws_of_a_query_do_not_depend_on_how_many_there_are():
    model = Bumpy(64)
    x, y = model.problem(6, (1, 8, 8))
    calls = []
    for queries in (300, 700):
        recorded = Recorded(model)
        Square(queries=queries, **PLAIN)(recorded, x, y, threat=Threat(eps=0.02), noise=Noise(3))
        calls.append(recorded.calls[:301])
    for short, long in zip(*calls, strict=True):
        assert torch.equal(short, long)


def test_examples_draw_windows_of_their_own():
    x = torch.full((40, 1, 8, 8), 0.5)
    region = Threat(eps=0.1).regions(x)[0]
    stretch = next(Canvas((1, 8, 8)).stretches(5, share=0.1, odd=False, longest=9))
    drawn = Extremes(region, Noise(0, torch.arange(40)), stretch)
    assert drawn.tops.shape == (40, 5, 1)
    assert set(drawn.tops[:, 0, 0].tolist()) == set(range(5))  # 8 - 3: the last row is left out
    assert len(drawn.lefts[:, 0, 0].unique()) == 5


def sides(shape, *, share=0.8, odd=False, queries=10_000):
    plan = Canvas(shape).stretches(queries, share=share, odd=odd, longest=queries)
    return [(stretch.first, stretch.side) for stretch in plan]


def test_windows_shrink_on_the_published_schedule():
    published = [(0, 29), (11, 20), (51, 14), (201, 10), (501, 7), (1001, 5), (2001, 4), (4001, 3)]
    assert sides((3, 32, 32)) == [*published, (6001, 2), (8001, 1)]
    odd = [(0, 29), (11, 21), (51, 15), (201, 11), (501, 7), (1001, 5), (4001, 3)]
    assert sides((3, 32, 32), odd=True) == odd
    assert sides((1, 8, 8), queries=5000)[-2:] == [(501, 2), (1001, 1)]
    line = [(0, 80), (11, 40), (51, 20), (201, 10), (501, 5), (1001, 2), (2001, 1)]
    assert sides((100, 7)) == line
    assert sides((1, 1, 20)) == [(0, 1)]
    assert sides((2,), odd=True) == [(0, 2)]
    first = Canvas((1, 8, 8)).stretches(5000, share=0.8, odd=False, longest=999)
    ends = [(stretch.first, stretch.after) for stretch in first]
    assert ends[0][0] == 0 and ends[-1][1] == 5000
    assert [after for _, after in ends[:-1]] == [begin for begin, _ in ends[1:]]


def test_says_what_it_is():
    assert Square().label == "square"
    assert Square(queries=1000).label == "square-1000"
    assert Square(restarts=2, start_share=0.5, lookahead=3).label == "square-5000x2-p0.5"
    assert Square().form((3, 32, 32)) == "square"
    assert Square().form((100, 2)) == Square().form((100,)) == "square-1d"
    assert Square(queries=10, restarts=3).passes(7) == (33, 0)


def test_refuses_what_has_no_plane():
    x, y = torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(Inapplicable, match=r"height, width\).*got \(1, 2, 2, 2\).*Reshape"):
        Square()(lambda points: points.flatten(1), x, y, threat=Threat(eps=0.1), noise=Noise(0))
