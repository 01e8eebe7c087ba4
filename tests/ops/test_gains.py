"""Gains against dense linear algebra, closed forms, and the inputs that attain them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.layers.dss import DSSConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config
from robustssm.ops.gains import (
    DENSE_UP_TO,
    l1_norms,
    l2_gain,
    l2_gain_bound,
    l2_gain_reference,
    linf_gain,
    linf_gains,
    pooled_gains,
    pooled_weights,
    spectral_norm,
    worst_signs,
)
from robustssm.ops.h_infinity import h_infinity
from robustssm.ops.recurrence import Recurrence, impulse_response, run
from robustssm.ops.response import (
    convolve,
    modal_bound,
    operator_matrix,
    step_response,
    two_sided_response,
)
from tests.ops.random_systems import FAMILIES, channels, system

each_family = pytest.mark.parametrize("family", FAMILIES)
drawn = given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    length=st.integers(1, 24),
    radius=st.sampled_from([0.5, 0.95, 1.0, 1.2]),
)


def low_pass(a):
    """K[t] = a^t."""
    shape = (1, 1, 1, 1)
    return Recurrence(
        A=torch.full(shape, a, dtype=torch.float64),
        B=torch.ones(*shape, 1, dtype=torch.float64),
        C=torch.ones(*shape, 1, dtype=torch.float64),
        D=torch.zeros(1, 1, 1, dtype=torch.float64),
    )


def by_group(y, recurrence):
    return y.unflatten(-1, (recurrence.groups, -1))


def as_input(u):
    """(groups, inputs, length) as the system reads it."""
    return u.flatten(0, 1).T[None]


@each_family
@pytest.mark.parametrize("length", [1, 2, 11])
def test_the_matrix_and_the_convolution_are_the_system(family, length):
    recurrence = system(family, Noise(0))
    u = Noise(1).normal(3, length, channels(recurrence), dtype=torch.float64)
    y = run(recurrence, u)
    torch.testing.assert_close(
        convolve(two_sided_response(recurrence, length), u), y, rtol=1e-10, atol=1e-11
    )
    H = operator_matrix(recurrence, length)
    stacked = torch.einsum(
        "gab,ngb->nga", H, by_group(u, recurrence).permute(0, 2, 3, 1).flatten(2)
    )
    expected = by_group(y, recurrence).permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(stacked, expected, rtol=1e-10, atol=1e-11)


def test_float32_systems_are_worked_out_in_float64():
    recurrence = system("pairs", Noise(2))
    single = replace(
        recurrence,
        A=recurrence.A.to(torch.complex64),
        B=recurrence.B.to(torch.complex64),
        C=recurrence.C.to(torch.complex64),
        D=recurrence.D.float(),
    )
    assert linf_gains(single, 8).dtype is torch.float64
    torch.testing.assert_close(linf_gains(single, 8), linf_gains(recurrence, 8), rtol=1e-5, atol=0)
    assert h_infinity(single).upper.dtype is torch.float64


@each_family
def test_a_step_response_is_the_answer_to_ones(family):
    recurrence = system(family, Noise(3))
    S = step_response(recurrence, 9)
    for i in range(recurrence.D.shape[-1]):
        u = torch.zeros(recurrence.groups, recurrence.D.shape[-1], 9, dtype=torch.float64)
        u[:, i] = 1
        y = by_group(run(recurrence, as_input(u)), recurrence)[0].permute(1, 2, 0)
        torch.testing.assert_close(S[:, :, i], y, rtol=1e-10, atol=1e-11)


def test_gains_of_a_first_order_low_pass_in_closed_form():
    a = 0.8
    geometric = (1 - a**10) / (1 - a)
    assert linf_gain(low_pass(a), 10).item() == pytest.approx(geometric, rel=1e-12)
    assert l2_gain_bound(low_pass(a), 400).item() == pytest.approx(1 / (1 - a), rel=1e-9)
    lower, upper = h_infinity(low_pass(a), tolerance=1e-6)
    assert lower.item() <= 1 / (1 - a) * (1 + 1e-12) and 1 / (1 - a) <= upper.item() * (1 + 1e-12)
    assert upper.item() <= lower.item() * (1 + 1e-6)
    mean = sum((1 - a**k) / (1 - a) for k in range(1, 11)) / 10
    assert pooled_gains(low_pass(a), 10).linf.item() == pytest.approx(mean, rel=1e-12)


@drawn
@settings(max_examples=60, deadline=None)
def test_the_worst_signs_attain_the_linf_gain(family, seed, length, radius):
    recurrence = system(family, Noise(seed), radius=radius)
    u = worst_signs(recurrence, length)
    assert torch.equal(u.abs(), torch.ones_like(u))
    y = by_group(run(recurrence, as_input(u)), recurrence)[0]
    gain = linf_gain(recurrence, length)
    torch.testing.assert_close(y.abs().amax((0, 2)), gain, rtol=1e-9, atol=0)
    rows = operator_matrix(recurrence, length).abs().sum(-1)
    rows = rows.unflatten(1, (-1, length)).amax(-1)
    torch.testing.assert_close(linf_gains(recurrence, length), rows, rtol=1e-9, atol=0)
    torch.testing.assert_close(gain, rows.amax(-1), rtol=1e-9, atol=0)


@drawn
@settings(max_examples=60, deadline=None)
def test_no_input_of_signs_beats_the_linf_gain(family, seed, length, radius):
    recurrence = system(family, Noise(seed), radius=radius)
    u = Noise(seed).fork("u").signs(20, length, channels(recurrence)).double()
    y = by_group(run(recurrence, u), recurrence).abs()
    assert (y.amax((0, 1)) <= linf_gains(recurrence, length) * (1 + 1e-9)).all()


@drawn
@settings(max_examples=60, deadline=None)
def test_the_l2_gain_is_the_largest_singular_value_and_gains_are_in_order(
    family, seed, length, radius
):
    recurrence = system(family, Noise(seed), radius=radius)
    gain = l2_gain(recurrence, length)
    torch.testing.assert_close(gain, l2_gain_reference(recurrence, length), rtol=1e-9, atol=0)
    bound = l2_gain_bound(recurrence, length)
    assert (gain <= bound * (1 + 1e-9)).all()
    assert (bound <= spectral_norm(l1_norms(recurrence, length)) * (1 + 1e-9)).all()
    if radius < 1:
        lower, upper = h_infinity(recurrence)
        assert (gain <= upper * (1 + 1e-9)).all() and (lower <= upper).all()


@pytest.mark.parametrize("family, length", [("dense", 200), ("both_ways", 150), ("mimo", 80)])
def test_lanczos_meets_the_dense_decomposition(family, length):
    recurrence = system(family, Noise(4), radius=0.9)
    assert max(recurrence.D.shape[1:]) * length > DENSE_UP_TO
    torch.testing.assert_close(
        l2_gain(recurrence, length), l2_gain_reference(recurrence, length), rtol=1e-9, atol=0
    )


def test_lanczos_survives_a_map_of_one_singular_value():
    recurrence = low_pass(0.0)
    assert l2_gain(recurrence, 200).item() == pytest.approx(1.0, rel=1e-12)
    assert l2_gain(replace(recurrence, C=0 * recurrence.C), 200).item() == 0.0


@each_family
@pytest.mark.parametrize("radius", [0.6, 0.99])
def test_h_infinity_holds_every_frequency_and_every_length(family, radius):
    recurrence = system(family, Noise(5), radius=radius)
    lower, upper = h_infinity(recurrence, tolerance=1e-4)
    assert (lower <= upper).all() and (upper <= lower * (1 + 1e-4)).all()
    T = two_sided_response(recurrence, 2048)
    grid = spectral_norm(torch.fft.rfft(T, n=1 << 15).movedim(-1, 1)).amax(-1)
    assert (grid <= upper * (1 + 1e-9)).all()
    assert (grid >= lower * (1 - 1e-4)).all()  # the grid is fine enough to see the peak
    assert (upper <= spectral_norm(T.abs().sum(-1)) * (1 + 1e-4)).all()


def test_h_infinity_finds_a_peak_narrower_than_any_grid():
    radius, angle = 1 - 1e-9, 1.2345
    A = torch.polar(*torch.tensor([[radius], [angle]], dtype=torch.float64))
    recurrence = Recurrence(
        A=A.reshape(1, 1, 1, 1),
        B=torch.ones(1, 1, 1, 1, 1, dtype=torch.complex128),
        C=torch.ones(1, 1, 1, 1, 1, dtype=torch.complex128),
        D=torch.zeros(1, 1, 1, dtype=torch.float64),
    )
    lower, upper = h_infinity(recurrence)
    assert lower.item() <= 0.5e9 * (1 + 1e-6) and upper.item() >= 0.5e9 * (1 - 1e-6)


@pytest.mark.parametrize("family", ["dense", "pairs", "both_ways"])
@pytest.mark.parametrize("radius", [1.0 + 1e-9, 1.3])
def test_an_unstable_system_has_finite_gains_and_no_infinite_one(family, radius):
    recurrence = system(family, Noise(6), radius=radius)
    way = recurrence.directions[-1]
    if way.diagonal:
        way = replace(way, A=way.A * (radius / way.A.abs().max()))
        recurrence = way if recurrence.backward is None else replace(recurrence, backward=way)
    with pytest.raises(Inapplicable, match="inside the unit circle"):
        h_infinity(recurrence)
    signs = worst_signs(recurrence, 30)
    y = by_group(run(recurrence, as_input(signs)), recurrence)[0]
    gain = linf_gain(recurrence, 30)
    assert torch.isfinite(gain).all()
    torch.testing.assert_close(y.abs().amax((0, 2)), gain, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        l2_gain(recurrence, 30), l2_gain_reference(recurrence, 30), rtol=1e-9, atol=0
    )


@drawn
@settings(max_examples=40, deadline=None)
def test_pooled_gains_are_those_of_the_mean_output(family, seed, length, radius):
    recurrence = system(family, Noise(seed), radius=radius)
    u = Noise(seed).fork("u").normal(2, length, channels(recurrence), dtype=torch.float64)
    mean = by_group(run(recurrence, u).mean(1), recurrence)
    W = pooled_weights(recurrence, length)
    grouped = by_group(u, recurrence)
    scale = W.abs().amax()
    torch.testing.assert_close(
        torch.einsum("goit,btgi->bgo", W, grouped), mean, rtol=1e-9, atol=1e-10 * scale.item()
    )
    found = pooled_gains(recurrence, length)
    attained = by_group(run(recurrence, as_input(found.signs)).mean(1), recurrence)[0]
    torch.testing.assert_close(attained.abs().amax(-1), found.linf.amax(-1), rtol=1e-9, atol=0)
    assert (found.linf <= linf_gains(recurrence, length) * (1 + 1e-9)).all()
    assert (found.l2.amax(-1) <= found.spectral * (1 + 1e-9)).all()
    steepest = W[:, 0] / W[:, 0].norm(dim=(1, 2), keepdim=True)
    reached = by_group(run(recurrence, as_input(steepest)).mean(1), recurrence)[0, :, 0]
    torch.testing.assert_close(reached, found.l2[:, 0], rtol=1e-9, atol=0)


def test_pooled_weights_are_the_step_response_from_the_end():
    recurrence = system("pairs", Noise(7))
    torch.testing.assert_close(
        pooled_weights(recurrence, 12), step_response(recurrence, 12).flip(-1) / 12
    )


@pytest.mark.parametrize("family", ["pairs", "complex", "averages", "mimo"])
def test_modes_bound_every_tap(family):
    recurrence = system(family, Noise(8))
    K, bound = impulse_response(recurrence, 20).abs(), modal_bound(recurrence, 20)
    assert (K <= bound * (1 + 1e-12)).all()
    alone = replace(
        recurrence,
        A=recurrence.A.abs(),
        B=recurrence.B.abs(),
        C=recurrence.C.abs(),
        D=recurrence.D.abs(),
        conjugate_pairs=False,
    )
    factor = 2 if recurrence.conjugate_pairs else 1
    torch.testing.assert_close(bound[..., 1:], factor * impulse_response(alone, 20)[..., 1:])


def test_what_has_no_such_bound_is_refused():
    with pytest.raises(Inapplicable, match="diagonal A"):
        modal_bound(system("dense", Noise(0)), 4)
    with pytest.raises(Inapplicable, match="diagonal A"):
        modal_bound(system("both_ways", Noise(0)), 4)
    recurrence = system("pairs", Noise(0))
    varying = replace(recurrence, A=recurrence.A.expand(1, 4, -1, -1))
    for refused in (lambda: linf_gain(varying, 4), lambda: h_infinity(varying)):
        with pytest.raises(Inapplicable, match="same at every step"):
            refused()
    with pytest.raises(ValueError, match="at least 1"):
        linf_gain(recurrence, 0)
    with pytest.raises(ValueError, match="as the response does"):
        convolve(two_sided_response(recurrence, 4), torch.zeros(1, 5, 3))


LAYERS = [S4Config(d_state=8), S4DConfig(d_state=8), DSSConfig(d_state=8), S5Config(d_state=8)]


@pytest.mark.parametrize("config", [*LAYERS, MegaConfig(d_state=3)], ids=lambda c: c.name)
def test_gains_of_the_librarys_layers_are_attained_by_the_layers(config):
    layer = config.build(d_model=4, length=16, noise=Noise(0)).double()
    u = Noise(1).normal(1, 16, 4, dtype=torch.float64)
    forward = layer.average if config.name == "mega" else layer
    with torch.no_grad():
        recurrence = layer.recurrence(u)
        e = 0.1 * as_input(worst_signs(recurrence, 16))
        delta = by_group(forward(u + e) - forward(u), recurrence)[0]
        torch.testing.assert_close(
            delta.abs().amax((0, 2)), 0.1 * linf_gain(recurrence, 16), rtol=1e-9, atol=0
        )
        e = 0.1 * as_input(pooled_gains(recurrence, 16).signs)
        delta = by_group((forward(u + e) - forward(u)).mean(1), recurrence)[0]
        torch.testing.assert_close(
            delta.abs().amax(-1),
            0.1 * pooled_gains(recurrence, 16).linf.amax(-1),
            rtol=1e-9,
            atol=0,
        )
        assert (l2_gain(recurrence, 16) <= h_infinity(recurrence).upper * (1 + 1e-9)).all()
