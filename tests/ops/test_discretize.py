"""Discretisation against scipy, against the differential equation itself, and in its limits."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.signal
import torch

from robustssm.core.rng import Noise
from robustssm.ops.discretize import (
    bilinear,
    bilinear_dense,
    expm1_ratio,
    real_pairs,
    zero_order_hold,
)
from robustssm.testing import tolerances
from tests.ops.real_form import real_low_rank

F64 = torch.float64


def system(groups=3, state=4, inputs=2, seed=0):
    noise = Noise(seed)
    decay = noise.uniform(groups, state, low=0.1, high=2.0, dtype=F64)
    a = torch.complex(-decay, noise.normal(groups, state, std=5.0, dtype=F64))
    b = torch.view_as_complex(noise.normal(groups, state, inputs, 2, dtype=F64))
    return a, b, noise.uniform(groups, 1, low=0.01, high=0.5, dtype=F64)


@pytest.mark.parametrize("hold, method", [(zero_order_hold, "zoh"), (bilinear, "bilinear")])
def test_diagonal_forms_equal_scipy(hold, method):
    a, b, dt = system()
    A, B = hold(a, b, dt)
    for g in range(3):
        dense = np.diag(a[g].numpy()), b[g].numpy(), np.eye(4), np.zeros((4, 2))
        expected = scipy.signal.cont2discrete(dense, dt[g].item(), method=method)
        np.testing.assert_allclose(np.diag(A[g].numpy()), expected[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(B[g].numpy(), expected[1], rtol=1e-9, atol=1e-12)


def test_dense_bilinear_equals_scipy_and_the_diagonal_form():
    a, b, dt = system()
    A, B = bilinear_dense(torch.diag_embed(a), b, dt[:, 0])
    diagonal = bilinear(a, b, dt)
    torch.testing.assert_close(A, torch.diag_embed(diagonal[0]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(B, diagonal[1], rtol=1e-10, atol=1e-12)
    full = Noise(1).normal(1, 4, 4, dtype=F64) - 3 * torch.eye(4, dtype=F64)
    A, B = bilinear_dense(full, b.real[:1], dt[0])
    dense = full[0].numpy(), b.real[0].numpy(), np.eye(4), np.zeros((4, 2))
    expected = scipy.signal.cont2discrete(dense, dt[0].item(), method="bilinear")
    np.testing.assert_allclose(A[0].numpy(), expected[0], rtol=1e-9)
    np.testing.assert_allclose(B[0].numpy(), expected[1], rtol=1e-9)


def test_low_rank_bilinear_is_the_dense_one_in_real_coordinates():
    a, b, dt = system(inputs=1)
    p = torch.view_as_complex(Noise(2).normal(3, 4, 2, dtype=F64))
    both = torch.cat([p, p.conj()], -1)
    full = torch.diag_embed(torch.cat([a, a.conj()], -1)) - both[..., None] * both[:, None].conj()
    b_full = torch.cat([b, b.conj()], -2)
    A, B = bilinear_dense(full, b_full, dt[:, 0])
    i, eye = 1j, torch.eye(4, dtype=torch.complex128)
    # (x, conj x) = U sqrt(2) (Re x, Im x), U unitary
    U = torch.cat([torch.cat([eye, i * eye], 1), torch.cat([eye, -i * eye], 1)]) / math.sqrt(2)
    real_A, real_B = real_low_rank(a, p, b[..., 0], dt[:, 0])
    torch.testing.assert_close(U @ real_A.to(U.dtype) @ U.mH, A, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(U @ real_B.to(U.dtype)[..., None], B, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(U @ real_pairs(b[0, :, 0]).to(U.dtype), b_full[0, :, 0])


def test_low_rank_bilinear_is_a_contraction_whatever_the_step():
    a, b, _ = system(inputs=1)
    p = torch.view_as_complex(Noise(3).normal(3, 4, 2, std=10.0, dtype=F64))
    for dt in (1e-4, 1.0, 1e4):
        A, _ = real_low_rank(a, p, b[..., 0], torch.full((3,), dt, dtype=F64))
        assert (torch.linalg.matrix_norm(A, ord=2) < 1).all()


def test_zero_order_hold_is_exact_on_held_inputs():
    a, b, dt = system(groups=1, inputs=1)
    A, B = zero_order_hold(a, b, dt)
    u = Noise(4).normal(6, dtype=F64)
    h = torch.zeros(4, dtype=torch.complex128)
    exact = np.zeros(4, dtype=complex)
    for t in range(6):
        h = A[0] * h + B[0, :, 0] * u[t]
        drive = b[0, :, 0].numpy() * u[t].item()
        solution = scipy.integrate.solve_ivp(
            lambda _, y, drive=drive: a[0].numpy() * y + drive,
            (0, dt[0, 0].item()),
            exact,
            rtol=1e-11,
            atol=1e-13,
        )
        exact = solution.y[:, -1]
    np.testing.assert_allclose(h.numpy(), exact, rtol=1e-8)


def test_bilinear_converges_with_order_two():
    a = torch.tensor([[-0.5 + 2j]], dtype=torch.complex128)
    one = torch.ones(1, 1, 1, dtype=torch.complex128)

    def error(steps):
        dt = torch.full((1, 1), 1.0 / steps, dtype=F64)
        A, _ = bilinear(a, one, dt)
        return (A[0, 0] ** steps - torch.exp(a[0, 0])).abs().item()

    orders = [math.log2(error(n) / error(2 * n)) for n in (32, 64, 128)]
    assert orders == pytest.approx([2.0] * 3, abs=0.01)


def test_zero_order_hold_at_a_zero_eigenvalue_is_the_integrator_with_finite_gradients():
    a = torch.zeros(1, 2, dtype=torch.complex128, requires_grad=True)
    A, B = zero_order_hold(a, torch.ones(1, 2, 1).to(a), torch.full((1, 1), 0.3, dtype=F64))
    torch.testing.assert_close(A, torch.ones_like(A))
    torch.testing.assert_close(B[..., 0], torch.full_like(A, 0.3), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(B.real.sum(), a)
    expected = torch.full((1, 2), 0.3**2 / 2, dtype=F64)  # (e^z - 1) / z = 1 + z / 2 + ...
    torch.testing.assert_close(gradient.real, expected, rtol=1e-9, atol=0)


def test_step_sizes_per_state_are_taken_one_by_one():
    a, b, _ = system(groups=1)
    dt = Noise(5).uniform(1, 4, low=0.01, high=0.5, dtype=F64)
    for hold in (zero_order_hold, bilinear):
        A, B = hold(a, b, dt)
        for n in range(4):
            alone = hold(a[:, n : n + 1], b[:, n : n + 1], dt[:, n : n + 1])
            torch.testing.assert_close(A[:, n : n + 1], alone[0])
            torch.testing.assert_close(B[:, n : n + 1], alone[1])


def test_expm1_ratio_in_complex64_over_eight_decades():
    noise = Noise(6)
    size = 10 ** noise.uniform(20000, low=-6, high=2, dtype=F64)
    angle = noise.uniform(20000, low=math.pi / 2, high=3 * math.pi / 2, dtype=F64)
    z = torch.polar(size, angle).to(torch.complex64)
    expected = expm1_ratio(z.to(torch.complex128))
    error = (expm1_ratio(z).to(torch.complex128) - expected).abs() / expected.abs()
    # Where e^z is near 1 again, z = 2 pi i k, nothing is left of the numerator to be accurate in.
    assert error[expected.abs() > 1e-3].max() < tolerances.DISCRETIZATION


def test_expm1_ratio_is_continuous_where_the_series_takes_over():
    z = torch.tensor([9.999999e-4, 1.000001e-3], dtype=F64)
    exact = [math.expm1(v) / v for v in z.tolist()]
    torch.testing.assert_close(expm1_ratio(z), torch.tensor(exact, dtype=F64), rtol=1e-12, atol=0)


def test_gradients():
    a, b, dt = system(groups=2, state=2, inputs=1)
    inputs = tuple(v.requires_grad_() for v in (a, b, dt))
    assert torch.autograd.gradcheck(zero_order_hold, inputs)
    assert torch.autograd.gradcheck(bilinear, inputs)
    p = torch.view_as_complex(Noise(7).normal(2, 2, 2, dtype=F64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, p, b, dt: real_low_rank(a, p, b[..., 0], dt[:, 0]), (a, p, b, dt)
    )
