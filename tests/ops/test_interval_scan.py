"""Interval bounds of scans: sound against search, exact where that is possible."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops.gains import linf_gain
from robustssm.ops.interval_scan import Box, SelectiveSystem, linear_bounds
from robustssm.ops.recurrence import Recurrence, run
from robustssm.ops.selective_scan import selective_scan_reference
from robustssm.ops.time_varying import adjoint, operator

F64 = torch.float64


def selective(noise, *, channels=5, state=3, rank=2, discretization="euler", scale=1.0):
    return SelectiveSystem(
        select=scale * noise.normal(rank + 2 * state, channels, dtype=F64),
        steps=noise.normal(channels, rank, dtype=F64),
        bias=noise.normal(channels, dtype=F64) - 1,
        A=-noise.normal(channels, state, dtype=F64).exp(),
        D=noise.normal(channels, dtype=F64),
        discretization=discretization,
    )


def linear(noise, *, groups=3, inputs=2, outputs=2, **fields):
    complex_shape = (1, 1, groups, 4)
    angle = noise.uniform(*complex_shape, low=-3.0, high=3.0, dtype=F64)
    return Recurrence(
        A=torch.polar(noise.uniform(*complex_shape, low=0.3, high=0.95, dtype=F64), angle),
        B=torch.view_as_complex(noise.normal(*complex_shape, inputs, 2, dtype=F64)),
        C=torch.view_as_complex(noise.normal(1, 1, groups, outputs, 4, 2, dtype=F64)),
        D=noise.normal(groups, outputs, inputs, dtype=F64),
        **fields,
    )


def inside(point, box, slack=1e-9):
    scale = slack * (1 + box.low.abs() + box.high.abs())
    return bool(((point >= box.low - scale) & (point <= box.high + scale)).all())


@given(
    discretization=st.sampled_from(["euler", "zoh"]),
    radius=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 4.0]),
    seed=st.integers(0, 200),
)
def test_whatever_is_in_the_box_stays_within_the_bounds(discretization, radius, seed):
    noise = Noise(seed)
    system = selective(noise, discretization=discretization)
    u = noise.normal(4, 8, 5, dtype=F64)
    box = Box.around(u, torch.full((4,), radius, dtype=F64))
    found = system.bounds(box)
    for k in range(6):
        inner = noise.fork(k).uniform(4, 8, 5, low=-1.0, high=1.0, dtype=F64)
        corner = noise.fork(k).signs(4, 8, 5).double()
        for direction in (inner, corner):
            assert inside(system.run(u + radius * direction), found)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_gradient_ascent_on_an_output_stays_below_its_bound(discretization, radius):
    system = selective(Noise(0), discretization=discretization)
    u = Noise(1).normal(8, 10, 5, dtype=F64)
    bounds = system.bounds(Box.around(u, torch.full((8,), radius, dtype=F64)))
    clean = system.run(u)
    point = u
    for step in range(15):
        point = point.detach().requires_grad_()
        change = (system.run(point)[:, -1] - clean[:, -1]).abs()
        (gradient,) = torch.autograd.grad(change.sum() + point[0, 0, 0] * (step == 0), point)
        moved = point + 0.5 * radius * (gradient.sign() if step else torch.ones_like(point))
        point = u + (moved - u).clamp(-radius, radius)
    reached = (system.run(point.detach()) - clean).abs()
    allowed = bounds.distance(clean)
    assert inside(system.run(point.detach()), bounds)
    assert (reached <= allowed).all()
    # The search must have got somewhere, or the comparison says nothing.
    ratio = (allowed[:, -1] / reached[:, -1].clamp(min=1e-12)).median()
    assert ratio < (20 if radius == 0.05 else 2e3)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_bounds_shrink_to_the_value_in_proportion_to_the_box(discretization):
    system = selective(Noise(2), discretization=discretization)
    u = Noise(3).normal(2, 20, 5, dtype=F64)
    clean = selective_scan_reference(
        u,
        system.delta(u),
        system.A,
        *(u @ system.select[2:].T).split([3, 3], -1),
        system.D,
        discretization=discretization,
    )
    point = system.bounds(Box(low=u, high=u))
    for end in (point.low, point.high, system.run(u)):
        torch.testing.assert_close(end, clean, rtol=1e-10, atol=1e-12)
    widths = [
        system.bounds(Box.around(u, torch.full((2,), r, dtype=F64))).radius.max()
        for r in (1e-4, 1e-5, 1e-6)
    ]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.02)
    assert widths[1] / widths[2] == pytest.approx(10, rel=0.002)


def test_one_step_of_one_state_without_selection_is_exact():
    """delta, B and C constant: y = softplus(bias) b c u + D u is linear, and so exact here."""
    bias = torch.tensor([0.3], dtype=F64)
    system = SelectiveSystem(
        select=torch.zeros(3, 1, dtype=F64),
        steps=torch.zeros(1, 1, dtype=F64),
        bias=bias,
        A=-torch.ones(1, 1, dtype=F64),
        D=torch.tensor([-2.0], dtype=F64),
    )
    u = torch.tensor([[[0.7]]], dtype=F64)
    bounds = system.bounds(Box.around(u, torch.tensor([0.1], dtype=F64)))
    torch.testing.assert_close(bounds.low, -2 * (u + 0.1))
    torch.testing.assert_close(bounds.high, -2 * (u - 0.1))


def test_a_positive_mode_is_refused_and_shapes_are_named():
    system = selective(Noise(0))
    u = torch.zeros(1, 3, 5, dtype=F64)
    with pytest.raises(Inapplicable, match="A <= 0"):
        replace(system, A=-system.A).bounds(Box(low=u, high=u))
    with pytest.raises(ValueError, match="rank \\+ 2 state"):
        replace(system, steps=system.steps[:, :1])
    with pytest.raises(ValueError, match="at least 0"):
        Box.around(u, torch.tensor([-1.0], dtype=F64))


@given(seed=st.integers(0, 100))
def test_a_product_of_boxes_holds_the_products_of_members_and_is_attained(seed):
    noise = Noise(seed)
    ends = noise.normal(4, 6, dtype=F64)
    a, b = (
        Box(low=torch.minimum(p, q), high=torch.maximum(p, q))
        for p, q in (ends[:2].unbind(), ends[2:].unbind())
    )
    t, s = noise.uniform(2, 6, dtype=F64)
    members = (a.low + t * (a.high - a.low)) * (b.low + s * (b.high - b.low))
    assert inside(members, a * b, 1e-12)
    corners = torch.stack([p * q for p in (a.low, a.high) for q in (b.low, b.high)])
    assert torch.equal((a * b).low, corners.amin(0))
    assert torch.equal((a * b).high, corners.amax(0))


@pytest.mark.parametrize("both", [False, True], ids=["causal", "both ways"])
def test_linear_bounds_are_the_l1_norm_and_attained(both):
    backward = replace(linear(Noise(1)), D=torch.zeros(3, 2, 2, dtype=F64)) if both else None
    system = linear(Noise(0), conjugate_pairs=True, backward=backward)
    u = Noise(2).normal(2, 9, 6, dtype=F64)
    radius = torch.tensor([0.1, 0.7], dtype=F64)
    bounds = linear_bounds(system, Box.around(u, radius))
    clean = run(system, u)
    H = operator(system, 9)[0].abs().sum((-1, -2))  # groups time outputs
    exact = radius[:, None, None] * H.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(bounds.distance(clean), exact, rtol=1e-9, atol=1e-12)
    if not both:
        gain = linf_gain(system, 9).max()
        torch.testing.assert_close(exact[1].max(), 0.7 * gain, rtol=1e-9, atol=0)
    k, c = 4, 3
    unit = torch.zeros_like(clean)
    unit[:, k, c] = 1
    worst = u + radius[:, None, None] * adjoint(system, unit).sign()
    torch.testing.assert_close((run(system, worst) - clean)[:, k, c], exact[:, k, c])


def test_linear_bounds_refuse_what_varies():
    system = linear(Noise(0))
    box = Box(low=torch.zeros(2, 4, 6, dtype=F64), high=torch.ones(2, 4, 6, dtype=F64))
    with pytest.raises(Inapplicable, match="same at every step"):
        linear_bounds(replace(system, A=system.A.expand(-1, 4, -1, -1)), box)
