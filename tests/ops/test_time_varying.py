"""Time-varying operators against dense matrices, autograd and singular value decompositions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s5 import S5Config
from robustssm.ops.recurrence import Recurrence, run
from robustssm.ops.time_varying import adjoint, decompose, jacobian_gain, operator, product

F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def system(noise, *, dense=False, real=False, batch=2, time=7, sizes=(3, 4, 2, 3), **fields):
    groups, state, inputs, outputs = sizes

    def draw(*shape):
        if real:
            return noise.normal(*shape, dtype=F64)
        return torch.view_as_complex(noise.normal(*shape, 2, dtype=F64))

    A = draw(batch, time, groups, state, *([state] if dense else []))
    return Recurrence(
        A=A * (0.4 if dense else 0.7) / A.abs().clamp(min=0.5),
        B=draw(batch, time, groups, state, inputs),
        C=draw(batch, time, groups, outputs, state),
        D=noise.normal(groups, outputs, inputs, dtype=F64),
        **fields,
    )


def systems():
    noise = Noise(0)
    yield "diagonal", system(noise)
    yield "pairs", system(noise, conjugate_pairs=True)
    yield "real", system(noise, real=True, batch=1)
    yield "dense", system(noise, dense=True)
    yield "invariant dense", system(noise, dense=True, real=True, batch=1, time=1)
    yield "invariant", system(noise, batch=1, time=1)
    yield "both ways", system(noise, backward=system(noise, time=1))
    yield (
        "shared",
        replace(
            system(noise, sizes=(1, 4, 2, 3)),
            D=noise.normal(3, 3, 2, dtype=F64),
            conjugate_pairs=True,
        ),
    )
    yield (
        "A alone varies",
        replace(system(noise), B=system(noise).B[:1, :1], C=system(noise).C[:, :1]),
    )


each_system = pytest.mark.parametrize(
    "recurrence", [pytest.param(s, id=name) for name, s in systems()]
)


@each_system
def test_the_dense_operator_the_product_and_run_agree(recurrence):
    v = Noise(1).normal(2, 7, recurrence.groups * 2, dtype=F64)
    expected = run(recurrence, v)
    H = operator(recurrence, 7)
    dense = torch.einsum("bgkojl,bjgl->bkgo", H.expand(2, *H.shape[1:]), v.unflatten(2, (-1, 2)))
    torch.testing.assert_close(dense.flatten(2), expected, **EXACT)
    torch.testing.assert_close(product(recurrence, v), expected, **EXACT)


@each_system
def test_the_adjoint_is_the_transposed_matrix_and_the_gradient(recurrence):
    v = Noise(1).normal(2, 7, recurrence.groups * 2, dtype=F64).requires_grad_()
    w = Noise(2).normal(2, 7, recurrence.groups * 3, dtype=F64)
    (gradient,) = torch.autograd.grad((run(recurrence, v) * w).sum(), v)
    torch.testing.assert_close(adjoint(recurrence, w), gradient, **EXACT)
    H = operator(recurrence, 7)
    dense = torch.einsum("bgkojl,bkgo->bjgl", H.expand(2, *H.shape[1:]), w.unflatten(2, (-1, 3)))
    torch.testing.assert_close(adjoint(recurrence, w), dense.flatten(2), **EXACT)


def test_one_step_is_enough():
    recurrence = system(Noise(3), time=1, backward=system(Noise(4), time=1))
    v = Noise(5).normal(2, 1, 6, dtype=F64)
    torch.testing.assert_close(product(recurrence, v), run(recurrence, v), **EXACT)
    assert operator(recurrence, 1).shape == (2, 3, 1, 3, 1, 2)


def test_another_length_is_refused():
    recurrence = system(Noise(0))
    with pytest.raises(ValueError, match="7 steps"):
        product(recurrence, torch.zeros(2, 5, 6, dtype=F64))
    with pytest.raises(ValueError, match="7 steps"):
        adjoint(
            replace(system(Noise(0), time=1), backward=recurrence), torch.zeros(2, 5, 9).double()
        )


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@given(size=st.sampled_from([0.0, 1e-3, 1.0]), seed=st.integers(0, 50))
def test_frozen_and_shift_add_up_to_the_measured_difference(discretization, size, seed):
    noise = Noise(seed)
    config = MambaConfig(d_state=3, discretization=discretization)
    layer = config.build(d_model=4, length=9, noise=noise).double()
    x = noise.normal(3, 9, 4, dtype=F64)
    moved = x + size * noise.normal(3, 9, 4, dtype=F64)
    with torch.no_grad():
        one, other = layer.recurrence(x), layer.recurrence(moved)
        parts = decompose(one, other, one.u, other.u)
        measured = run(other, other.u) - run(one, one.u)
        torch.testing.assert_close(parts.change, measured, rtol=1e-9, atol=1e-12)
        frozen, shift, cross, change = parts.squares()
    torch.testing.assert_close(frozen + shift + cross, change, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(change, measured.square().sum(-1), rtol=1e-9, atol=1e-15)
    assert (shift.sum() > 0) == (frozen.sum() > 0) == (size > 0)


@pytest.mark.parametrize("config", [S4Config(d_state=4), S5Config(d_state=4)])
def test_the_parameters_of_a_time_invariant_layer_do_not_shift(config):
    layer = config.build(d_model=4, length=9, noise=Noise(0)).double()
    x, moved = Noise(1).normal(2, 3, 9, 4, dtype=F64)
    with torch.no_grad():
        parts = decompose(layer.recurrence(x), layer.recurrence(moved), x, moved)
        assert parts.shift.abs().max() <= 1e-12 * parts.frozen.abs().max()
        torch.testing.assert_close(parts.change, layer(moved) - layer(x), rtol=1e-6, atol=1e-6)


def selective_toy(u):
    """A scalar selective system: step sizes, B and C are chosen by the one input."""
    a = -torch.arange(1.0, 9.0, dtype=F64)
    delta = torch.nn.functional.softplus(3 * u - 2)  # (batch, time, 1)
    B, C = u * torch.linspace(0.5, 1.5, 8).double(), u * torch.linspace(1.5, 0.5, 8).double()
    return Recurrence(
        A=torch.exp(delta * a)[:, :, None],
        B=(delta * B)[:, :, None, :, None],
        C=C[:, :, None, None],
        D=torch.zeros(1, 1, 1, dtype=F64),
    )


def test_where_parameters_shift_most_the_printed_operator_misses_most():
    """qi2024exploring, equation 10: y[k] = sum_j g[j] u[k-j+1], indices taken as lags."""
    u = Noise(7).normal(1, 128, 1, dtype=F64)
    perturbation = 0.1 * Noise(8).signs(1, 128, 1).double()
    clean, moved = selective_toy(u), selective_toy(u + perturbation)
    parts = decompose(clean, moved, u, u + perturbation)
    frozen, shift, cross, change = parts.squares().sum((1, 2))
    assert shift > 3 * frozen
    assert change > 3 * frozen
    assert cross.abs() > 0.1 * change  # parts are not orthogonal: neither alone is a share
    decays = torch.cat([torch.ones_like(clean.A[:, :1]), clean.A.cumprod(1)[:, :-1]], 1)
    g = torch.einsum("btgos,btgs,btgsi->t", clean.C, decays, clean.B)
    lag = torch.arange(128)[:, None] - torch.arange(128)
    printed = torch.where(lag >= 0, g[lag.clamp(min=0)], 0.0) @ perturbation[0, :, 0]
    assert printed.square().sum() < 0.2 * change
    true = operator(clean, 128)[0, 0, :, 0, :, 0] @ perturbation[0, :, 0]
    torch.testing.assert_close(true.square().sum(), frozen, rtol=1e-9, atol=0)


@pytest.mark.parametrize("gap", [0.5, 0.9])
def test_jacobian_gain_of_a_linear_map_is_its_largest_singular_value(gap):
    U, _ = torch.linalg.qr(Noise(0).normal(3, 12, 8, dtype=F64))
    V, _ = torch.linalg.qr(Noise(1).normal(3, 8, 8, dtype=F64))
    values = 5 * gap ** torch.arange(8.0, dtype=F64)
    J = U * values @ V.mT
    x = Noise(2).normal(3, 8, dtype=F64)
    found = jacobian_gain(
        lambda x: torch.einsum("boi,bi->bo", J, x), x, noise=Noise(3), tolerance=1e-13, most=400
    )
    torch.testing.assert_close(found.value, torch.full((3,), 5.0, dtype=F64), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.direction.norm(dim=1), torch.ones(3, dtype=F64))
    overlap = (found.direction * V[..., 0]).sum(-1).abs()
    torch.testing.assert_close(overlap, torch.ones(3, dtype=F64), rtol=1e-5, atol=0)
    assert (found.residual < 1e-5).all() and found.steps < 400


@pytest.mark.parametrize("name", ["mamba", "s4", "s5"])
def test_jacobian_gain_of_a_layer_is_that_of_its_dense_jacobian(name):
    config = {"mamba": MambaConfig(d_state=2), "s4": S4Config(d_state=4), "s5": S5Config(d_state=4)}
    layer = config[name].build(d_model=3, length=6, noise=Noise(0)).double().requires_grad_(False)
    x = Noise(1).normal(2, 6, 3, dtype=F64)
    found = jacobian_gain(layer, x, noise=Noise(2), tolerance=1e-12, most=2000)
    for k in range(2):
        J = torch.autograd.functional.jacobian(layer, x[k : k + 1]).reshape(18, 18)
        torch.testing.assert_close(
            found.value[k], torch.linalg.svdvals(J)[0], rtol=1e-5 if name == "s4" else 1e-7, atol=0
        )
    again = jacobian_gain(layer, x, noise=Noise(2), tolerance=1e-12, most=2000)
    assert torch.equal(found.value, again.value)


def test_jacobian_gain_comes_from_below_and_rises_with_more_steps():
    J = Noise(0).normal(50, 30, 20, dtype=F64)
    x = torch.zeros(50, 20, dtype=F64)
    largest = torch.linalg.svdvals(J)[:, 0]

    def gain(most):
        return jacobian_gain(
            lambda x: torch.einsum("boi,bi->bo", J, x), x, noise=Noise(1), tolerance=0.0, most=most
        )

    values = torch.stack([gain(most).value for most in (1, 2, 5, 20, 60)])
    assert (values.diff(dim=0) >= -1e-12).all()
    assert (values <= largest * (1 + 1e-12)).all()
    assert (values[-1] >= 0.99 * largest).all() and (values[0] < 0.9 * largest).all()


def test_a_constant_has_no_gain():
    x = Noise(0).normal(2, 3, dtype=F64)
    constant = jacobian_gain(lambda x: torch.ones_like(x) + 0 * x, x, noise=Noise(1))
    assert constant.value.eq(0).all() and constant.residual.eq(0).all()
    detached = jacobian_gain(lambda x: torch.relu(-x.abs()), x, noise=Noise(1))
    assert detached.value.eq(0).all()
