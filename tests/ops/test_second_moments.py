"""Exact mean squares against Monte Carlo, recursions and dense matrices, and what bounds them."""

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
from robustssm.ops.gains import l2_gain
from robustssm.ops.recurrence import Recurrence, run
from robustssm.ops.response import operator_matrix
from robustssm.ops.second_moments import (
    Moments,
    iid_mean_square,
    mean_square,
    mean_square_bounds,
    output_moments,
)
from tests.ops.random_systems import FAMILIES, channels, system

SEEDS = 8  # times the number of families: 64 systems


def moments(noise, *, length, width, rank=0, spread=True):
    """A mean and variances that vary with time and channel, and a factor."""
    return Moments(
        mean=noise.fork("mean").normal(length, width, dtype=torch.float64),
        variance=noise.fork("variance").uniform(length, width, dtype=torch.float64) * spread,
        factor=noise.fork("factor").normal(rank, length, width, dtype=torch.float64),
    )


def squares(recurrence, e):
    """||H e||^2 of every group for every row of e, by running the system."""
    return run(recurrence, e).unflatten(-1, (recurrence.groups, -1)).square().sum((1, 3))


def assert_within(found, draws, sigmas):
    z = (draws.mean(0) - found) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() <= sigmas, f"|z| = {z.abs().max():.2f}"
    assert (draws.std(0) / len(draws) ** 0.5 <= 0.05 * found).all()  # else it would prove little


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_form_monte_carlo_and_recursion_agree(family, seed):
    noise = Noise(seed).fork(family)
    recurrence = system(family, noise, radius=(0.7, 0.95, 1.0, 1.1)[seed % 4])
    length, width = (12, 5, 1, 9)[seed % 4], channels(recurrence)
    mean = noise.fork("mean").normal(width, dtype=torch.float64) * (seed % 3)
    variance = noise.fork("variance").uniform(width, dtype=torch.float64)
    closed = iid_mean_square(recurrence, length, mean=mean, variance=variance)
    iid = Moments.iid(length, mean=mean, variance=variance)
    recursion = output_moments(recurrence, iid.mean, iid.variance)
    torch.testing.assert_close(closed.exact, recursion.mean_square[0], rtol=1e-9, atol=0)
    whole = mean_square(recurrence, iid)
    torch.testing.assert_close(whole.exact, closed.exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(whole.mean, closed.mean, rtol=1e-9, atol=1e-12)
    draws = squares(recurrence, iid.draw(20_000, noise.fork("monte carlo")))
    assert_within(closed.exact, draws, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_variance_that_changes_in_time_is_that_of_the_recursion(family):
    recurrence = system(family, Noise(0))
    m = moments(Noise(1), length=10, width=channels(recurrence))
    found, expected = mean_square(recurrence, m), output_moments(recurrence, m.mean, m.variance)
    torch.testing.assert_close(found.exact, expected.mean_square[0], rtol=1e-9, atol=0)
    y = run(recurrence, m.mean[None])[0].unflatten(-1, (recurrence.groups, -1))
    torch.testing.assert_close(expected.mean[0], y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [3, 100])
def test_any_covariance_is_that_of_the_dense_matrix(family, rank):
    recurrence = system(family, Noise(2))
    m = moments(Noise(3), length=6, width=channels(recurrence), rank=rank)
    H = operator_matrix(recurrence, 6)
    found, bounds = mean_square(recurrence, m), mean_square_bounds(recurrence, m)

    def stacked(v):
        return v.unflatten(-1, (recurrence.groups, -1)).movedim(-2, 0).transpose(-1, -2).flatten(-2)

    for g in range(recurrence.groups):
        F = stacked(m.factor)[g]
        V = torch.diag(stacked(m.variance)[g]) + F.T @ F
        spread = torch.trace(H[g] @ V @ H[g].T)
        mean = (H[g] @ stacked(m.mean)[g]).square().sum()
        torch.testing.assert_close(found.spread[g], spread, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.mean[g], mean, rtol=1e-9, atol=0)
        least = torch.linalg.eigvalsh(V)[0]
        assert bounds.lower[g] <= mean + least * H[g].square().sum() * (1 + 1e-9)
    assert_within(found.exact, squares(recurrence, m.draw(4000, Noise(4))), 4)


def test_the_least_eigenvalue_of_a_full_covariance_is_in_the_lower_bound():
    recurrence = system("pairs", Noise(5))
    m = moments(Noise(6), length=6, width=3, rank=50, spread=False)
    H = operator_matrix(recurrence, 6)
    bounds = mean_square_bounds(recurrence, m)
    for g in range(3):
        F = m.factor[..., g]
        least = torch.linalg.eigvalsh(F.T @ F)[0]
        expected = (H[g] @ m.mean[:, g]).square().sum() + least * H[g].square().sum()
        torch.testing.assert_close(bounds.lower[g], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_of_samples_give_their_own_mean_square(family):
    recurrence = system(family, Noise(7))
    e = Noise(8).normal(70, 9, channels(recurrence), dtype=torch.float64) + 0.3  # more than a chunk
    found = mean_square(recurrence, Moments.of(e))
    torch.testing.assert_close(found.exact, squares(recurrence, e).mean(0), rtol=1e-9, atol=0)
    m = Moments.of(e)
    torch.testing.assert_close(m.second, e.square().mean(0), rtol=1e-9, atol=0)


@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
    rank=st.sampled_from([0, 1, 5, 40]),
    radius=st.sampled_from([0.5, 0.95, 1.0, 1.2]),
    spread=st.booleans(),
    drift=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_bounds_hold(family, seed, length, rank, radius, spread, drift):
    recurrence = system(family, Noise(seed), radius=radius)
    m = moments(Noise(seed), length=length, width=channels(recurrence), rank=rank, spread=spread)
    m = replace(m, mean=drift * m.mean)
    exact = mean_square(recurrence, m).exact
    bounds = mean_square_bounds(recurrence, m)
    sharp = mean_square_bounds(recurrence, m, gain=l2_gain(recurrence, length))
    slack = 1 + 1e-9
    assert (bounds.lower >= 0).all()
    assert (bounds.lower <= exact * slack).all()
    for upper in (bounds.minkowski, bounds.l1, bounds.spectral, sharp.spectral):
        assert (exact <= upper * slack).all()
    assert (bounds.minkowski <= bounds.l1 * slack).all()
    assert (sharp.spectral <= bounds.spectral * slack).all()


def test_bounds_are_attained_where_they_say():
    """White noise and no mean: lower. A perfectly correlated error of one sign: minkowski."""
    a = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    recurrence = Recurrence(A=a, B=one, C=one, D=torch.zeros(1, 1, 1, dtype=torch.float64))
    unit = torch.ones(1, dtype=torch.float64)
    white = Moments.iid(10, mean=0 * unit, variance=2 * unit)
    torch.testing.assert_close(
        mean_square_bounds(recurrence, white).lower, mean_square(recurrence, white).exact
    )
    common = replace(white, variance=0 * white.variance, factor=torch.ones_like(white.mean)[None])
    torch.testing.assert_close(
        mean_square_bounds(recurrence, common).minkowski, mean_square(recurrence, common).exact
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_perturbation_gives_no_error(family):
    recurrence = system(family, Noise(9))
    zero = torch.zeros(channels(recurrence), dtype=torch.float64)
    m = Moments.iid(7, mean=zero, variance=zero)
    assert (mean_square(recurrence, m).exact == 0).all()
    assert all((bound == 0).all() for bound in mean_square_bounds(recurrence, m))
    assert (output_moments(recurrence, m.mean, m.variance).mean_square == 0).all()


@pytest.mark.parametrize("family", ["complex", "pairs", "averages", "dense", "mimo", "both_ways"])
def test_the_recursion_covers_systems_that_vary_with_time_and_example(family):
    length, batch = 7, 2
    draws = [[system(family, Noise(10).fork(b, t)) for t in range(length)] for b in range(batch)]

    def varying(ways):
        """One direction whose A, B and C vary, with the skip of the first."""
        first = ways[0][0]
        parts = {
            name: torch.cat([torch.cat([getattr(w, name) for w in row], 1) for row in ways])
            for name in ("A", "B", "C")
        }
        return replace(first, **parts, backward=None)

    recurrence = varying(draws)
    if family == "both_ways":
        back = varying([[w.backward for w in row] for row in draws])
        recurrence = replace(recurrence, backward=back)
    m = moments(Noise(11), length=length, width=channels(recurrence))
    found = output_moments(recurrence, m.mean, m.variance)
    # Column by column: what one unit at one place gives, so exact for independent errors.
    columns = torch.eye(m.mean.numel(), dtype=torch.float64).unflatten(-1, m.mean.shape)
    for b in range(batch):
        alone = one_example(recurrence, b)
        H = run(alone, columns).unflatten(-1, (recurrence.groups, -1))
        spread = torch.einsum("ntgo,n->tgo", H.square(), m.variance.flatten())
        mean = torch.einsum("ntgo,n->tgo", H, m.mean.flatten())
        torch.testing.assert_close(found.variance[b], spread, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.mean[b], mean, rtol=1e-9, atol=1e-12)


def one_example(recurrence, b):
    parts = {name: getattr(recurrence, name)[b : b + 1] for name in ("A", "B", "C")}
    back = recurrence.backward
    return replace(recurrence, **parts, backward=back and one_example(back, b))


def test_without_the_pseudo_covariance_the_variance_would_be_another():
    """The recursion must not be right by luck: P alone is off by much for slow complex modes."""
    recurrence = system("complex", Noise(12))
    white = Moments.iid(12, mean=torch.zeros(3).double(), variance=torch.ones(3).double())
    exact = output_moments(recurrence, white.mean, white.variance).variance.sum((0, 1, 3))
    no_skip = replace(recurrence, D=0 * recurrence.D)
    imaginary = replace(no_skip, C=-1j * no_skip.C)  # Re(-i v) = Im v, and |v|^2 is both together
    alone = sum(
        output_moments(s, white.mean, white.variance).variance.sum((0, 1, 3))
        for s in (no_skip, imaginary)
    )
    assert ((alone / 2 / exact - 1).abs() > 0.05).any()


def test_moments_that_do_not_fit_are_refused():
    m = moments(Noise(13), length=4, width=3)
    with pytest.raises(ValueError, match="at least 0"):
        replace(m, variance=m.variance - 1)
    with pytest.raises(ValueError, match="of one"):
        replace(m, mean=m.mean[:2])
    varying = system("pairs", Noise(0))
    varying = replace(varying, A=varying.A.expand(1, 4, -1, -1))
    with pytest.raises(Inapplicable, match="same at every step"):
        mean_square(varying, m)
    with pytest.raises(ValueError, match="as the response does"):
        mean_square(system("pairs", Noise(0)), moments(Noise(0), length=4, width=5))


LAYERS = [S4Config(d_state=8), S4DConfig(d_state=8), DSSConfig(d_state=8), S5Config(d_state=8)]


@pytest.mark.parametrize("config", [*LAYERS, MegaConfig(d_state=3)], ids=lambda c: c.name)
def test_the_error_of_the_librarys_layers_is_the_exact_one(config):
    layer = config.build(d_model=4, length=16, noise=Noise(0)).double()
    u = Noise(1).normal(5, 16, 4, dtype=torch.float64)
    e = 0.1 * Noise(2).normal(5, 16, 4, dtype=torch.float64) + 0.02
    forward = layer.average if config.name == "mega" else layer
    with torch.no_grad():
        recurrence = layer.recurrence(u)
        delta = (forward(u + e) - forward(u)).unflatten(-1, (recurrence.groups, -1))
        found = mean_square(recurrence, Moments.of(e))
    torch.testing.assert_close(found.exact, delta.square().sum((1, 3)).mean(0), rtol=1e-9, atol=0)
