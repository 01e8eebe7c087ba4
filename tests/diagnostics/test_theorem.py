"""The theorem as printed against exact errors: where it fails, and what is true in its place."""

import math
from dataclasses import replace

import pytest
import torch

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.diagnostics.theorem import (
    counterexample_lower,
    counterexample_upper,
    monte_carlo,
    paper_bounds,
    printed_constants,
    removable_singularity,
)
from robustssm.layers.dss import DSSConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config
from robustssm.ops.recurrence import Recurrence, impulse_response, run
from robustssm.ops.second_moments import Moments, mean_square, mean_square_bounds
from tests.ops.random_systems import channels, system


def constant(length, width, mean=1.0, variance=0.0):
    unit = torch.ones(width, dtype=torch.float64)
    return Moments.iid(length, mean=mean * unit, variance=variance * unit)


def test_the_printed_upper_bound_is_zero_where_the_error_is_1409():
    recurrence, moments = counterexample_upper()
    found = paper_bounds(recurrence, moments, noise=Noise(0), samples=2)
    assert found.upper.item() == 0.0
    expected = sum(((1 - 0.9**k) / 0.1 - (1 - 0.1**k) / 0.9) ** 2 for k in range(1, 33))
    assert found.exact.item() == pytest.approx(expected, rel=1e-9)
    assert found.exact.item() == pytest.approx(1409, abs=0.5)
    assert found.estimate.item() == pytest.approx(expected, rel=1e-9)
    y = run(recurrence, torch.ones(1, 32, 1, dtype=torch.float64))
    assert y.square().sum().item() == pytest.approx(expected, rel=1e-9)
    assert found.violations()["upper"].item() and not found.violations()["lower"].item()
    bounds = mean_square_bounds(recurrence, moments)
    assert bounds.minkowski.item() == pytest.approx(expected, rel=1e-9)  # K >= 0 and e constant


def test_the_printed_lower_bound_is_five_where_the_error_is_1_24():
    recurrence, moments = counterexample_lower()
    found = paper_bounds(recurrence, moments, noise=Noise(0), samples=2)
    assert found.lower.item() == pytest.approx(5.00, abs=0.005)
    expected = (1 - 0.95**512) / (1 - 0.95**32)
    assert found.exact.item() == pytest.approx(expected, rel=1e-9)
    assert found.exact.item() == pytest.approx(1.24, abs=0.005)
    K = impulse_response(recurrence, 32)[0, 0, 0]
    taps = torch.zeros(32, dtype=torch.float64)
    taps[[0, 16]] = torch.tensor([1.0, 0.95**16], dtype=torch.float64)
    taps[[1, 17]] = -taps[[0, 16]]
    torch.testing.assert_close(K, taps, rtol=1e-9, atol=1e-12)
    y = run(recurrence, torch.ones(1, 256, 1, dtype=torch.float64))
    assert y.square().sum().item() == pytest.approx(expected, rel=1e-9)
    assert found.violations()["lower"].item() and not found.violations()["upper"].item()
    bounds = mean_square_bounds(recurrence, moments)
    assert bounds.lower.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_the_constants_are_the_eigenvalues_of_the_triangle(length):
    E = torch.ones(length, length, dtype=torch.float64).tril()
    values = torch.linalg.eigvalsh(E.T @ E)
    c1, c2 = printed_constants(length)
    assert c1 == pytest.approx(values[0].item(), rel=1e-9)
    assert c2 == pytest.approx(values[-1].item(), rel=1e-9)


def test_the_upper_constant_grows_with_the_square_of_the_length():
    assert printed_constants(1024)[1] == pytest.approx(2049**2 / math.pi**2, rel=1e-5)
    assert printed_constants(1024)[1] == pytest.approx(4.25e5, rel=1e-2)
    assert printed_constants(1024)[0] == pytest.approx(0.25, rel=1e-5)


def test_one_mode_in_closed_form():
    """Both printed sums, written out, for a system with a skip that they leave out."""
    a, b, c, d, mean, variance, length = 0.7, 1.5, -2.0, 3.0, 0.4, 0.09, 6
    shape = (1, 1, 1, 1)
    recurrence = Recurrence(
        A=torch.full(shape, a, dtype=torch.float64),
        B=torch.full((*shape, 1), b, dtype=torch.float64),
        C=torch.full((*shape, 1), c, dtype=torch.float64),
        D=torch.full((1, 1, 1), d, dtype=torch.float64),
    )
    moments = constant(length, 1, mean, variance)
    found = paper_bounds(recurrence, moments, noise=Noise(0), samples=20_000)
    c1, c2 = printed_constants(length)
    total = sum(a**j for j in range(length)) * (b * c) ** 2
    assert found.lower.item() == pytest.approx(mean**2 * c1 * total, rel=1e-9)
    assert found.upper.item() == pytest.approx(c2 * (mean**2 + variance) * total, rel=1e-9)
    bare = replace(recurrence, D=0 * recurrence.D)
    for skip, value in ((recurrence, found.exact), (bare, found.exact_without_skip)):
        torch.testing.assert_close(value, mean_square(skip, moments).exact, rtol=1e-9, atol=0)
    z = (found.estimate - found.exact) / found.standard_error
    assert z.abs().item() <= 4 and found.standard_error.item() < 0.02 * found.exact.item()


@pytest.mark.parametrize("family", ["dense", "pairs", "complex", "averages"])
def test_the_estimate_agrees_with_the_exact_error(family):
    recurrence = system(family, Noise(1))
    moments = constant(10, channels(recurrence), 0.3, 0.3)
    found = paper_bounds(recurrence, moments, noise=Noise(2), samples=20_000)
    z = (found.estimate - found.exact) / found.standard_error
    assert z.abs().max() <= 4
    assert (found.standard_error > 0).all() and (found.standard_error < 0.05 * found.exact).all()


def test_draws_in_parts_are_as_many_as_asked_for(monkeypatch):
    recurrence = system("pairs", Noise(3))
    moments = constant(10, 3, 0.0, 1.0)
    monkeypatch.setattr("robustssm.diagnostics.theorem._TOGETHER", 30 * 700)
    estimate, error = monte_carlo(recurrence, moments, noise=Noise(4), samples=2000)
    exact = mean_square(recurrence, moments).exact
    assert ((estimate - exact).abs() <= 4 * error).all()
    assert not torch.equal(
        *(monte_carlo(recurrence, moments, noise=Noise(s), samples=700)[0] for s in (0, 1))
    )


def test_the_last_step_of_the_proof_fails_for_one_mode():
    """|lambda|^(j - 1) (C B)^2 <= K[j - 1]^2 is false for every j > 1 if |lambda| < 1."""
    recurrence = system("averages", Noise(5))
    one = replace(
        recurrence, A=recurrence.A[..., :1], B=recurrence.B[..., :1, :], C=recurrence.C[..., :1]
    )
    K = impulse_response(replace(one, D=0 * one.D), 8)[:, 0, 0].square()
    printed = one.A[0, 0] ** torch.arange(8) * K[:, :1]
    assert (printed[:, 1:] > K[:, 1:]).all()


def test_no_perturbation_has_no_error_and_printed_bounds_of_zero():
    recurrence = system("pairs", Noise(6))
    found = paper_bounds(recurrence, constant(5, 3, 0.0, 0.0), noise=Noise(0), samples=2)
    assert all((value == 0).all() for value in found)
    assert not any(broken.any() for broken in found.violations().values())


def test_one_step_and_unstable_systems_are_covered():
    recurrence = system("dense", Noise(7), radius=1.1)
    for length in (1, 20):
        found = paper_bounds(recurrence, constant(length, 3), noise=Noise(0), samples=2)
        y = run(recurrence, torch.ones(1, length, 3, dtype=torch.float64))
        torch.testing.assert_close(found.exact, y.square().sum((0, 1)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", ["mimo", "both_ways"])
def test_what_the_theorem_does_not_speak_of_is_refused(family):
    recurrence = system(family, Noise(8))
    with pytest.raises(Inapplicable, match="causal system of one input"):
        paper_bounds(recurrence, constant(4, channels(recurrence)), noise=Noise(0))
    varying = system("pairs", Noise(8))
    varying = replace(varying, B=varying.B.expand(1, 4, -1, -1, -1))
    with pytest.raises(Inapplicable, match="same at every step"):
        paper_bounds(varying, constant(4, 3), noise=Noise(0))


@pytest.mark.parametrize(
    "config",
    [S4Config(d_state=8), S4DConfig(d_state=8), DSSConfig(d_state=8)],
    ids=lambda c: c.name,
)
def test_the_librarys_layers_are_compared_with_the_theorem(config):
    layer = config.build(d_model=4, length=16, noise=Noise(0)).double()
    u = Noise(1).normal(1, 16, 4, dtype=torch.float64)
    with torch.no_grad():
        recurrence = layer.recurrence(u)
        delta = layer(u + 0.1) - layer(u)
    found = paper_bounds(recurrence, constant(16, 4, 0.1), noise=Noise(0), samples=2)
    torch.testing.assert_close(found.exact, delta.square().sum((0, 1)), rtol=1e-9, atol=0)
    assert (found.lower >= 0).all() and (found.upper > 0).all()


@pytest.mark.parametrize(
    "config", [S5Config(d_state=8), MegaConfig(d_state=3)], ids=lambda c: c.name
)
def test_layers_that_the_theorem_leaves_out_are_refused(config):
    layer = config.build(d_model=4, length=16, noise=Noise(0)).double()
    recurrence = layer.recurrence(torch.zeros(1, 16, 4, dtype=torch.float64))
    with pytest.raises(Inapplicable):
        paper_bounds(recurrence, constant(16, 4), noise=Noise(0))


def test_the_input_matrix_goes_to_zero_with_the_step():
    dt = torch.logspace(-1, -9, 9, dtype=torch.float64)
    found = removable_singularity(dt)
    ratio = found.exact / dt
    assert ((ratio - 1).abs() <= dt / 4 * (1 + 1e-5)).all()  # 1 + a dt / 2 + ..., a = -1/2
    assert (found.exact.diff() < 0).all()
    torch.testing.assert_close(found.stable.double(), found.exact, rtol=4e-7, atol=0)
    assert found.naive[-1].item() == 0.0  # and not infinite: the quotient loses all its digits
    assert (found.naive.double() / found.exact - 1).abs()[dt < 1e-4].amax() > 1e-3
