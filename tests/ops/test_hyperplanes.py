"""The shortest way onto a hyperplane in a box: linear programs, optimality conditions, laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from robustssm.core.rng import Noise
from robustssm.ops import hyperplanes
from tests.data import reference_fab

ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}
NORMS = tuple(ORDERS)

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "rows": st.sampled_from([1, 7]),
        "d": st.sampled_from([1, 2, 3, 5, 17, 40]),
        "low": st.sampled_from([0.0, -1.0, 0.2]),
        "width": st.sampled_from([1.0, 0.3, 200.0]),
        "scale": st.sampled_from([1.0, 1e-12, 1e12]),
        "reach": st.sampled_from([0.0, 1e-3, 0.4, 1.0, 1.5]),
    }
)


def problem(*, seed, rows, d, low, width, scale, reach, dtype=torch.float64):
    """Points in a box, some on its sides, some held; equal and zero weights; any distance.

    `reach` is that of the plane, as a share of what all coordinates together can gain.
    """
    noise = Noise(seed)
    low = low + width * noise.uniform(rows, d, high=0.2, dtype=dtype)
    high = low + width * noise.uniform(rows, d, low=0.1, dtype=dtype)
    held = noise.integers(rows, d, high=5) == 0
    high = torch.where(held, low, high)
    points = low + (high - low) * noise.uniform(rows, d, low=-0.5, high=1.5, dtype=dtype).clamp(
        0, 1
    )
    points = points.clamp(low, high)
    w = noise.normal(rows, d, dtype=dtype)
    w[:, ::3] = w[:, :1].sign()
    w = scale * w * (noise.integers(rows, d, high=6) > 0)
    side = noise.signs(rows).to(dtype)
    gain = (w.abs() * room(points, w * side[:, None], low, high)).sum(1)
    b = (w.double() * points).sum(1) + reach * side * gain
    return points, w, b, low, high


def room(points, direction, low, high):
    """How far each coordinate may move in a direction."""
    up, down = high - points, points - low
    return torch.where(direction > 0, up, torch.where(direction < 0, down, torch.zeros_like(up)))


def solve(points, w, b, low, high, norm):
    return hyperplanes.project(points, w, b, norm=norm, low=low, high=high)


def oracle(point, w, b, low, high, norm):
    """The least norm by a linear program in (v, r): r the largest move, or every move."""
    d, w = len(point), w / np.abs(w).max()
    one, eye = np.ones((d, 1)), np.eye(d)
    bound = one if norm == "linf" else eye
    parts = bound.shape[1]
    above = np.hstack([eye, -bound]), point
    below = np.hstack([-eye, -bound]), -point
    found = linprog(
        np.r_[np.zeros(d), np.ones(parts)],
        A_ub=np.vstack([above[0], below[0]]),
        b_ub=np.r_[above[1], below[1]],
        A_eq=np.r_[w, np.zeros(parts)][None],
        b_eq=[b],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * parts],
    )
    assert found.success, found.message
    return found.fun


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("reach", [1e-3, 0.3, 0.9])
def test_length_is_that_of_a_linear_program(norm, reach):
    setting = {"rows": 12, "d": 9, "low": -1.0, "width": 1.0, "scale": 1.0}
    points, w, b, low, high = problem(seed=3, reach=reach, **setting)
    found = solve(points, w, b, low, high, norm)
    lengths = (found - points).norm(ORDERS[norm], dim=1)
    for i in range(len(points)):
        weights = w[i].numpy()
        side = b[i].item() / np.abs(weights).max()
        best = oracle(points[i].numpy(), weights, side, low[i].numpy(), high[i].numpy(), norm)
        assert lengths[i].item() == pytest.approx(best, rel=1e-8, abs=1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_length_is_that_of_the_reference_in_the_unit_cube(norm):
    points, w, b = reference_fab.hyperplanes()
    found = solve(points, w, b, torch.zeros_like(points), torch.ones_like(points), norm)
    stored = torch.from_numpy(np.load(reference_fab.STORED)[f"{norm}_projection"])
    assert ((found == 0) | (found == 1)).any(1).float().mean() > 0.5, "the box must be active"
    torch.testing.assert_close(
        (found - points).norm(ORDERS[norm], dim=1), stored, rtol=0, atol=3e-6
    )


@given(case=CASES)
def test_l2_meets_the_optimality_conditions(case):
    """v = clip(t + c w, low, high) with one c per row, or the corner: then v is the projection."""
    points, w, b, low, high = problem(**case)
    found = solve(points, w, b, low, high, "l2")
    move, limit = found - points, 1e-12 * (1 + case["width"])
    inside = (found > low + limit) & (found < high - limit) & (w != 0)
    c = torch.where(inside, move / w, 0.0)
    largest = torch.where(inside, c.abs(), 0.0).max(1, keepdim=True)
    c = c.gather(1, largest.indices)
    candidate = torch.minimum(torch.maximum(points + c * w, low), high)
    corner = ~inside.any(1, keepdim=True)
    # Where no coordinate is free, each has moved to its end, towards the plane.
    ends = points + (w * move).sum(1, keepdim=True).sign() * w.sign() * move.abs()
    candidate = torch.where(corner, ends, candidate)
    torch.testing.assert_close(found, candidate, rtol=1e-8, atol=1e-9 * case["width"])


@pytest.mark.parametrize("norm", NORMS)
@given(case=CASES, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_on_the_plane_where_it_can_be_and_else_in_the_nearest_corner(norm, case, dtype):
    points, w, b, low, high = problem(**case, dtype=dtype)
    found = solve(points, w, b, low, high, norm)
    assert found.dtype == dtype
    assert (found >= low).all() and (found <= high).all()
    assert torch.equal(found[low == high], low[low == high])
    assert torch.equal(found[w == 0], points[w == 0])
    gap = b - (w.double() * points.double()).sum(1)
    left = b - (w.double() * found.double()).sum(1)
    size = (w.abs() * (low.abs() + high.abs())).double().sum(1)
    tolerance = (1e-12 if dtype == torch.float64 else 2e-6) * size
    if case["reach"] <= 1:
        assert (left.abs() <= tolerance).all()
    else:
        direction = w * gap.sign()[:, None].to(dtype)
        corner = points + direction.sign() * room(points, direction, low, high)
        torch.testing.assert_close(found, corner, rtol=1e-6, atol=1e-6 * case["width"])
    # No coordinate moves away from the plane.
    assert ((found - points) * w * gap.sign()[:, None].to(dtype) >= 0).all()


def level(weights, ends, full, need):
    """What `_level` solves, by sorting where coordinates stop: the independent closed form."""
    ends, order = ends.sort(dim=1)
    weights, full = weights.gather(1, order), full.gather(1, order)
    stopped = full.cumsum(1)
    moving = weights.flip(1).cumsum(1).flip(1) - weights
    count = (stopped + ends * moving < need[:, None]).sum(1, keepdim=True)
    zero = torch.zeros_like(need)[:, None]
    s = torch.cat((zero, stopped), 1).gather(1, count)
    a = torch.cat((weights.sum(1, keepdim=True), moving), 1).gather(1, count)
    return ((need[:, None] - s) / a).squeeze(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(case=CASES)
def test_equals_the_solution_by_sorting(norm, case):
    case = case | {"reach": min(case["reach"], 0.999), "scale": 1.0}
    points, w, b, low, high = problem(**case)
    gap = b - (w * points).sum(1)
    speed = w.abs()
    space = room(points, w * gap.sign()[:, None], low, high)
    weights = speed if norm == "linf" else speed.square()
    ends = space if norm == "linf" else torch.where(speed > 0, space / speed, torch.inf)
    ends = torch.where(weights > 0, ends, 0.0)
    c = level(weights, ends, speed * space, gap.abs())[:, None]
    rate = (speed > 0) if norm == "linf" else speed
    reach = torch.minimum(torch.where(gap.abs()[:, None] > 0, c * rate, 0.0), space)
    best = points + gap.sign()[:, None] * w.sign() * reach
    found = solve(points, w, b, low, high, norm)
    torch.testing.assert_close(found, best, rtol=1e-9, atol=1e-10 * case["width"])


@pytest.mark.parametrize("d", [15, 16, 17, 90])
def test_l1_uses_the_largest_weights_first_however_many_it_needs(d):
    """Equal rooms of 1/2: k coordinates in full and a fraction of the next, in order of |w|."""
    for used in (0.3, d / 2 + 0.25, d - 0.5, d + 3):
        w = torch.arange(1, d + 1, dtype=torch.float64).roll(5) * (-1.0) ** torch.arange(d)
        points = torch.full((1, d), 0.5, dtype=torch.float64)
        order = w.abs().argsort(descending=True)
        expected = torch.zeros(d, dtype=torch.float64)
        expected[order] = 0.5 * (used - torch.arange(d, dtype=torch.float64)).clamp(0, 1)
        b = (w * points[0]).sum() + (w.abs() * expected).sum() + max(0, used - d)
        zero = torch.zeros_like(points)
        found = solve(points, w[None], b[None], zero, zero + 1, "l1")
        torch.testing.assert_close(found[0], points[0] + w.sign() * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_hard_row_takes_many_rounds_and_is_solved_like_the_easy_ones_beside_it(norm):
    """Ends at powers of two, weights that make every round stop one more coordinate."""
    d = 24
    w = torch.stack((4.0 ** -torch.arange(d), torch.ones(d))).double()
    high = torch.stack((3.0 ** torch.arange(d) * 1e-9, torch.ones(d))).double()
    zero = torch.zeros_like(w)
    b = 0.999 * (w * high).sum(1)
    found = solve(zero, w, b, zero, high, norm)
    torch.testing.assert_close((w * found).sum(1), b, rtol=1e-12, atol=0)
    for i in range(2):
        one = slice(i, i + 1)
        alone = solve(zero[one], w[one], b[one], zero[one], high[one], norm)
        torch.testing.assert_close(alone, found[one], rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_scale_of_the_plane_does_not_matter_even_in_float32(norm):
    setting = {"seed": 1, "rows": 7, "d": 12, "low": 0.0, "width": 1.0, "reach": 0.5}
    points, w, b, low, high = problem(**setting, scale=1.0, dtype=torch.float32)
    usual = solve(points, w, b, low, high, norm)
    assert (usual != points).any(1).all()
    for scale in (2.0**-100, 2.0**100):
        scaled = solve(points, w * scale, b.double() * scale, low, high, norm)
        torch.testing.assert_close(scaled, usual, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_without_a_direction_or_a_distance_stay(norm):
    points = torch.full((3, 4), 0.25)
    w = torch.zeros(3, 4)
    w[1] = 1.0
    b = torch.tensor([1.0, 1.0, 0.0])  # no direction; already there; neither
    zero = torch.zeros_like(points)
    assert torch.equal(solve(points, w, b, zero, zero + 1, norm), points)
    empty = torch.zeros(0, 4)
    assert solve(empty, empty, torch.zeros(0), empty, empty, norm).shape == (0, 4)
