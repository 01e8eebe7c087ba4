"""Projection, direction, samples and distance: laws over many inputs, and independent oracles."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.ops import balls

NORMS = ("linf", "l2", "l1")


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "low": st.sampled_from([0.0, -1.0, 0.1]),
        "width": st.sampled_from([1.0, 0.7, 255.0]),
        "shape": st.sampled_from([(3, 7), (2, 3, 5), (2, 3, 4, 4), (1, 1)]),
        "std": st.sampled_from([1e-4, 0.1, 10.0]),
        "odd": st.sampled_from([math.nan, math.inf, -math.inf, 0.5, 1e30]),
    }
)
RADII = st.sampled_from([0.0, 1e-5, 1 / 255, 0.031, 0.3, 2.0, 1e3])


def problem(*, seed, dtype, low, width, shape, std, odd):
    """Centres in a box, some on its boundary; points anywhere, one of them odd; the bounds."""
    high = low + width
    x = Noise(seed).uniform(*shape, low=low, high=high, dtype=dtype).clamp(low, high)
    x.view(-1)[::3] = high
    x_adv = x + Noise(seed).fork("move").normal(*shape, std=std, dtype=dtype)
    x_adv.view(-1)[:1] = odd
    return x, x_adv, (low, high)


FAR = {"seed": 0, "dtype": torch.float64, "shape": (2, 3, 4, 4), "std": 10.0, "odd": torch.nan}


@pytest.mark.parametrize("norm", NORMS)
@given(case=CASES, eps=RADII)
@example(case={**FAR, "low": 0.0, "width": 255.0}, eps=1e-5)  # 10^7 radii away
def test_projection_is_in_ball_and_box_and_idempotent(norm, case, eps):
    x, x_adv, bounds = problem(**case)
    z = balls.project(x_adv, x, norm=norm, eps=eps, bounds=bounds)
    assert (z >= bounds[0]).all() and (z <= bounds[1]).all()
    assert (balls.distance(z, x, norm=norm) <= eps * (1 + 1e-6)).all()
    assert torch.equal(balls.project(z, x, norm=norm, eps=eps, bounds=bounds), z)
    assert eps > 0 or torch.equal(z, x)


@pytest.mark.parametrize("norm", NORMS)
@given(case=CASES, eps=RADII)
def test_projection_is_the_nearest_point_of_the_set(norm, case, eps):
    """p is the projection of v onto a convex set iff <v - p, z - p> <= 0 for every z in it."""
    x, v, bounds = problem(**case | {"dtype": torch.float64})
    v = v.nan_to_num(posinf=3.0, neginf=-3.0).clamp(-300, 300)
    p = balls.project(v, x, norm=norm, eps=eps, bounds=bounds)
    others = [x] + [
        balls.project(x + direction, x, norm=norm, eps=eps, bounds=bounds)
        for direction in (v - x, x - v, *(Noise(k).normal(like=x) for k in range(8)))
    ]
    for z in others:
        inner = ((v - p) * (z - p)).flatten(1).sum(1)
        assert (inner <= 1e-9 * (1 + (v - p).flatten(1).norm(dim=1) * eps)).all()


def test_l2_projection_equals_dykstras_algorithm():
    noise = Noise(1)
    x = noise.uniform(4, 6, dtype=torch.float64)
    v = x + noise.normal(4, 6, dtype=torch.float64)
    z, p, q = v, torch.zeros_like(v), torch.zeros_like(v)
    for _ in range(2000):  # alternates ball and box, with Dykstra's corrections p and q
        inside = x + (z + p - x) * (0.5 / (z + p - x).norm(dim=1, keepdim=True)).clamp(max=1)
        p, (z, y) = z + p - inside, (z, inside)
        z = (y + q).clamp(0, 1)
        q = y + q - z
    found = balls.project(v, x, norm="l2", eps=0.5, bounds=(0.0, 1.0))
    assert ((found == 0) | (found == 1)).any(), "the box must be active somewhere"
    torch.testing.assert_close(found, z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_points_in_the_set_stay_bit_for_bit(norm):
    x = Noise(2).uniform(3, 10)
    x_adv = (x + Noise(3).normal(3, 10, std=1e-3)).clamp(0, 1)
    assert torch.equal(balls.project(x_adv, x, norm=norm, eps=0.1, bounds=(0.0, 1.0)), x_adv)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_centre_that_rounding_left_outside_is_kept(norm, eps):
    x = torch.tensor([[1 + 5e-7, -5e-7, 0.5]])
    z = balls.project(x, x, norm=norm, eps=eps, bounds=(0.0, 1.0))
    assert torch.equal(z, x)


@pytest.mark.parametrize("norm", NORMS)
def test_nan_coordinates_fall_back_to_the_centre(norm):
    x = torch.full((1, 3), 0.5)
    z = balls.project(torch.tensor([[math.nan] * 3]), x, norm=norm, eps=0.1, bounds=(0.0, 1.0))
    assert torch.equal(z, x)


@pytest.mark.parametrize("norm, dual", [("linf", 1), ("l2", 2), ("l1", math.inf)])
@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e200])
def test_ascent_attains_the_dual_norm(norm, dual, scale):
    g = scale * Noise(4).normal(3, 2, 5, dtype=torch.float64)
    u = balls.ascend(g, norm=norm)
    torch.testing.assert_close(
        balls.distance(u, torch.zeros_like(u), norm=norm), torch.ones(3, dtype=torch.float64)
    )
    attained = (u * (g / scale)).flatten(1).sum(1)
    torch.testing.assert_close(
        attained, (g / scale).flatten(1).norm(p=dual, dim=1), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_of_degenerate_gradients_is_finite(norm):
    g = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [1e-40, 0.0]])
    u = balls.ascend(g, norm=norm)
    assert u.isfinite().all()
    assert torch.equal(u[0], torch.zeros(2))
    assert torch.equal(u[1], torch.tensor([0.0, 1.0]))
    assert torch.equal(u[3], torch.tensor([1.0, 0.0])), "a denormal gradient still has a direction"


def test_linf_samples_are_uniform():
    x = torch.full((4000, 2), 0.5, dtype=torch.float64)
    delta = (balls.sample(x, norm="linf", eps=0.2, noise=Noise(5)) - x) / 0.2
    assert delta.abs().max() <= 1
    assert abs(float(delta.mean())) < 0.04
    assert abs(float(delta.square().mean()) - 1 / 3) < 0.02


def test_l2_samples_are_uniform_in_the_ball():
    """Of a uniform point in d dimensions, (r / eps)^d is uniform; all directions are as likely."""
    x = torch.zeros(4000, 3, dtype=torch.float64)
    delta = balls.sample(x, norm="l2", eps=2.0, noise=Noise(6)) / 2.0
    cubes = delta.norm(dim=1) ** 3
    assert cubes.max() <= 1
    assert abs(float(cubes.mean()) - 1 / 2) < 0.02
    assert abs(float(cubes.square().mean()) - 1 / 3) < 0.02
    assert float(delta.mean(0).abs().max()) < 0.04
    torch.testing.assert_close(
        delta.T @ delta / 4000, torch.eye(3, dtype=torch.float64) / 5, rtol=0, atol=0.02
    )


def test_l1_samples_are_uniform_in_the_ball():
    """(r / eps)^d is uniform, and |delta_i| / r is one of d spacings, with mean 1 / d."""
    x = torch.zeros(4000, 3, dtype=torch.float64)
    delta = balls.sample(x, norm="l1", eps=2.0, noise=Noise(7)) / 2.0
    radius = delta.abs().sum(1)
    assert radius.max() <= 1 + 1e-9
    assert abs(float((radius**3).mean()) - 1 / 2) < 0.02
    assert abs(float((radius**6).mean()) - 1 / 3) < 0.02
    shares = delta.abs() / radius[:, None]
    assert float((shares.mean(0) - 1 / 3).abs().max()) < 0.02
    assert abs(float(shares.square().mean()) - 1 / 6) < 0.01  # 2 / (d (d + 1))
    assert float(delta.mean(0).abs().max()) < 0.03
