"""Kernels from structured products against plain sums, dense resolvents and printed values."""

import math

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.discretize import (
    bilinear,
    bilinear_dense,
    real_pairs,
    zero_order_hold,
)
from robustssm.ops.hippo import diagonal, legs, legs_low_rank
from robustssm.ops.structured import (
    cauchy_generating_function,
    cauchy_reference,
    krylov_product,
    krylov_reference,
    vandermonde_product,
    vandermonde_reference,
)
from robustssm.testing import tolerances
from tests.ops.real_form import real_low_rank

F64 = torch.float64
LENGTHS = [1, 2, 3, 7, 16, 33, 100]


def complex_normal(noise, *shape):
    return torch.view_as_complex(noise.normal(*shape, 2, dtype=F64))


def printed(*values):
    return torch.tensor([values], dtype=F64)


def low_rank_system(rows=3, state=16, seed=0):
    noise = Noise(seed)
    a, P, B = (v[None] for v in legs_low_rank(state))
    dt = noise.uniform(rows, low=0.005, high=0.2, dtype=F64)
    return a, P, B, complex_normal(noise, rows, state // 2), dt


def dense(a, P, B, C, dt):
    """The discretised system with all conjugates written out: A, B, C."""
    a, P, B, C = (torch.cat([v, v.conj()], -1) for v in (a, P, B, C))
    full = torch.diag_embed(a) - P[..., None] * P[:, None].conj()
    A, B = bilinear_dense(full, B[..., None], dt)
    return A, B[..., 0], C


def relative(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def test_s4_kernel_with_legs_of_four_states():
    A, B = legs(4)
    dt = torch.tensor([0.1], dtype=F64)
    A, B = bilinear_dense(A[None], B[None, :, None], dt)
    expected = printed(
        0.547052197739, 0.223439367527, 0.063993929101, -0.004599418612,
        -0.025621550246, -0.023929160707, -0.013252275079, -0.00073675791,
    )  # fmt: skip
    K = krylov_product(A, B[..., 0], torch.ones(1, 4, dtype=F64), 8)
    torch.testing.assert_close(K, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "hold, expected",
    [
        (zero_order_hold, printed(
            0.387011208635, 0.350341187798, 0.300984952682, 0.244020162256,
            0.184808923753, 0.128456683586, 0.0793472183, 0.040790883325)),
        (bilinear, printed(
            0.385766597874, 0.349877232113, 0.301444901652, 0.245362496017,
            0.186828387066, 0.13082682419, 0.081676898909, 0.042686144192)),
    ],
    ids=["zoh", "bilinear"],
)  # fmt: skip
def test_s4d_lin_kernel_with_two_pairs(hold, expected):
    a = diagonal("lin", 2)[None]
    dt = torch.full((1, 1), 0.1, dtype=F64)
    A, B = hold(a, torch.ones(1, 2, 1, dtype=a.dtype), dt)
    K = vandermonde_product(2 * B[..., 0], A, 8)
    torch.testing.assert_close(K, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["complex", "real", "shared"])
def test_vandermonde_is_the_sum(length, kind):
    noise = Noise(0)
    rows = 1 if kind == "shared" else 3
    base = torch.polar(
        noise.uniform(rows, 5, low=0.2, high=1.0, dtype=F64),
        noise.uniform(rows, 5, low=-3.0, high=3.0, dtype=F64),
    )
    c = complex_normal(noise, 3, 5)
    if kind == "real":
        base, c = base.abs(), c.real
    K = vandermonde_product(c, base, length)
    by_hand = torch.stack([(c * base**lag).sum(-1) for lag in range(length)], -1)
    by_hand = by_hand.real if by_hand.is_complex() else by_hand
    torch.testing.assert_close(K, by_hand, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vandermonde_reference(c, base, length), by_hand)


def test_vandermonde_survives_eigenvalues_that_vanish():
    base = torch.tensor([[0.0, 1e-200, 1.0]], dtype=torch.complex128, requires_grad=True)
    c = torch.ones(1, 3, dtype=torch.complex128)
    K = vandermonde_product(c, base, 9)
    torch.testing.assert_close(K, printed(3.0, *[1.0] * 8))
    (gradient,) = torch.autograd.grad(K.sum(), base)
    assert torch.isfinite(torch.view_as_real(gradient)).all()


@pytest.mark.parametrize("spectrum", ["lin", "inv", "legs", "real"])
def test_vandermonde_in_float32(spectrum):
    noise = Noise(1)
    dt = torch.exp(noise.uniform(8, 1, low=math.log(1e-3), high=math.log(0.1), dtype=F64))
    a = diagonal(spectrum, 32)[None]
    A, B = zero_order_hold(a, torch.ones_like(a)[..., None], dt)
    c = complex_normal(noise, 8, 32) * B[..., 0]
    found = vandermonde_product(c.to(torch.complex64), A, 784)
    assert found.dtype is torch.float32
    assert relative(found, vandermonde_reference(c, A, 784)) < tolerances.VANDERMONDE


@pytest.mark.parametrize("length", LENGTHS)
def test_krylov_is_the_loop_and_the_dense_system(length):
    a, P, B, C, dt = low_rank_system()
    A_full, B_full, C_full = dense(a, P, B, C, dt)
    taps = []
    for _ in range(length):
        taps.append((C_full * B_full).sum(-1).real)
        B_full = (A_full @ B_full[..., None])[..., 0]
    expected = torch.stack(taps, -1)
    A, b = real_low_rank(a, P, B, dt)
    c = real_pairs(C.conj())
    torch.testing.assert_close(krylov_reference(A, b, c, length), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(krylov_product(A, b, c, length), expected, rtol=1e-9, atol=1e-11)


def test_krylov_in_float32_with_sixty_four_states():
    a, P, B, C, dt = low_rank_system(state=64)

    def kernel(a, P, B, C, dt):
        A, b = real_low_rank(a, P, B, dt)
        return krylov_product(A, b, real_pairs(C.conj()), 784)

    single = (*(v.to(torch.complex64) for v in (a, P, B, C)), dt.float())
    assert relative(kernel(*single), kernel(a, P, B, C, dt)) < tolerances.KRYLOV


@pytest.mark.parametrize("length", [1, 2, 3, 19, 20, 100])
def test_cauchy_is_the_resolvent_the_reference_and_the_kernel(length):
    a, P, B, C, dt = low_rank_system()
    A, b, c = dense(a, P, B, C, dt)
    truncated = (c[:, None] @ (torch.eye(16) - torch.linalg.matrix_power(A, length)))[:, 0]
    inputs = (a, P, B, truncated[:, :8], dt, length)
    found = cauchy_generating_function(*inputs)
    torch.testing.assert_close(found, cauchy_reference(*inputs), rtol=1e-9, atol=1e-11)

    w = torch.exp(-2j * math.pi / length * torch.arange(length // 2 + 1, dtype=F64))
    eye = torch.eye(16, dtype=A.dtype)
    resolvent = torch.linalg.solve(eye - w[:, None, None, None] * A, b[..., None])[..., 0]
    by_hand = (truncated * resolvent).sum(-1).T
    torch.testing.assert_close(found, by_hand, rtol=1e-8, atol=1e-10)

    A_real, b_real = real_low_rank(a, P, B, dt)
    K = krylov_reference(A_real, b_real, real_pairs(C.conj()), length)
    torch.testing.assert_close(torch.fft.irfft(found, n=length), K, rtol=1e-9, atol=1e-11)


def test_cauchy_in_float32_has_no_pole():
    a, P, B, C, dt = low_rank_system(state=64)
    found = cauchy_generating_function(
        *(v.to(torch.complex64) for v in (a, P, B, C)), dt.float(), 784
    )
    expected = cauchy_generating_function(a, P, B, C, dt, 784)
    K, K_expected = torch.fft.irfft(found, n=784), torch.fft.irfft(expected, n=784)
    assert relative(K, K_expected) < tolerances.CAUCHY


@pytest.mark.parametrize("length", [5, 6])
def test_gradients(length):
    a, P, B, C, dt = low_rank_system(rows=2, state=4)
    inputs = tuple(v.detach().requires_grad_() for v in (a, P, B, C, dt))
    assert torch.autograd.gradcheck(lambda *v: cauchy_generating_function(*v, length), inputs)
    base = torch.exp(0.1 * a.detach()).requires_grad_()
    c = C.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda c, z: vandermonde_product(c, z, length), (c, base))
    A, b = (v.detach().requires_grad_() for v in real_low_rank(a, P, B, dt))
    row = real_pairs(C).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: krylov_product(*v, length), (A, b, row))
