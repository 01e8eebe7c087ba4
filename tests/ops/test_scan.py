"""Scans against the loops that define them, in float64, with all gradients."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.ops import scan
from robustssm.ops.kernels import native
from robustssm.ops.scan import linear_scan, linear_scan_reference

F64 = torch.float64
C128 = torch.complex128


def factors(noise, *shape, dtype=F64):
    """Inside the unit disc, up to the circle itself."""
    radius, angle = noise.uniform(*shape, low=0.2, dtype=F64), noise.uniform(*shape, dtype=F64)
    return torch.polar(radius, 6 * angle) if dtype.is_complex else radius


def values(noise, *shape, dtype=F64):
    real, imag = noise.normal(*shape, dtype=F64), noise.normal(*shape, dtype=F64)
    return torch.complex(real, imag) if dtype.is_complex else real


def gradcheck(function, inputs, *, twice=False):
    """torch's own check by differences, which draws its directions globally."""
    with global_stream(Noise(98)):
        assert torch.autograd.gradcheck(function, inputs)
        assert not twice or torch.autograd.gradgradcheck(function, inputs)


def agree(fast, plain, inputs, *, rtol=1e-9, atol=1e-11):
    """Values and the gradients with respect to every input."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y, expected = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
    v = values(Noise(99), *y.shape, dtype=y.dtype)
    found = torch.autograd.grad(y, inputs, v)
    for name, got, want in zip(
        "0123456", found, torch.autograd.grad(expected, inputs, v), strict=False
    ):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("varying", ["no", "time", "batch"])
@pytest.mark.parametrize("batch, time", [(1, 1), (2, 2), (3, 37), (1, 100), (2, 64)])
def test_linear_scan_is_the_loop(batch, time, varying, reverse, dtype):
    noise = Noise(time)
    lead = {"no": (), "time": (1, time), "batch": (batch, time)}[varying]
    a = factors(noise, *lead, 2, 3, dtype=dtype)
    b = values(noise, batch, time, 2, 3, dtype=dtype)
    agree(
        lambda a, b: linear_scan(a, b, reverse=reverse),
        lambda a, b: linear_scan_reference(a, b, reverse=reverse),
        [a, b],
    )


def test_large_steps_take_the_plain_loop_and_agree():
    noise = Noise(0)
    a, b = factors(noise, 70, dtype=C128), values(noise, 60, 33, 70, dtype=C128)
    assert b[:, 0].numel() >= scan._LOOP_ELEMENTS
    agree(linear_scan, linear_scan_reference, [a, b])


def test_complex_factors_of_real_inputs():
    noise = Noise(1)
    a, b = factors(noise, 3, dtype=C128), values(noise, 2, 9, 3)
    torch.testing.assert_close(linear_scan(a, b), linear_scan_reference(a, b))
    assert linear_scan(a, b).dtype == C128


def test_linear_scan_is_a_geometric_sum():
    a, time = torch.tensor([0.5, 1.0, 0.0], dtype=F64), 40
    h = linear_scan(a, torch.ones(1, time, 3, dtype=F64))
    n = torch.arange(1, time + 1, dtype=F64)
    expected = torch.stack([(1 - 0.5**n) / 0.5, n, torch.ones(time, dtype=F64)], -1)
    torch.testing.assert_close(h[0], expected, rtol=1e-12, atol=0)


def test_linear_scan_passes_gradcheck_twice():
    noise = Noise(2)
    for lead in [(), (1, 33), (2, 33)]:
        a = factors(noise, *lead, 1, dtype=C128).requires_grad_()
        b = values(noise, 1 if lead == (1, 33) else 2, 33, 1, dtype=C128).requires_grad_()
        gradcheck(lambda a, b, r=bool(lead): linear_scan(a, b, reverse=r), (a, b))
    for lead in [(), (1, 5), (2, 5)]:
        a = factors(noise, *lead, 2).requires_grad_()
        gradcheck(linear_scan, (a, values(noise, 2, 5, 2).requires_grad_()), twice=True)


def test_strided_inputs_give_the_same():
    noise = Noise(3)
    a, b = factors(noise, 4), values(noise, 36, 2, 4)
    torch.testing.assert_close(
        linear_scan(a, b.transpose(0, 1)), linear_scan(a, b.transpose(0, 1).contiguous())
    )


def test_float32_error_of_a_long_complex_scan():
    noise = Noise(4)
    a = torch.polar(torch.ones(8, dtype=F64), noise.uniform(8, high=3.0, dtype=F64))
    b = values(noise, 2, 1024, 8, dtype=C128)
    a = a.to(torch.complex64).to(C128)
    exact = linear_scan_reference(a, b)
    single = linear_scan(a.to(torch.complex64), b.to(torch.complex64))
    assert (single - exact).norm() / exact.norm() < 2e-6


COMPILED = 4e-6
"""Of compiled scans and their gradients, relative to the largest entry. Measured 1.7e-6, the worst
of 20 seeds at the sizes below, every level."""


@pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")
@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v3", "generic"])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch, time, channels", [(1, 1, 1), (3, 100, 37), (2, 65, 8), (1, 9, 16)])
def test_compiled_scans_are_the_loop(batch, time, channels, reverse, complex_, level):
    assert compiled_error(batch, time, channels, reverse, complex_, level, time) <= COMPILED


def compiled_error(batch, time, channels, reverse, complex_, level, seed):
    """The worst of value and gradients, relative to the largest entry."""
    noise, dtype = Noise(seed), C128 if complex_ else F64
    inputs = (
        factors(noise, channels, dtype=dtype),
        values(noise, batch, time, channels, dtype=dtype),
    )
    v = values(Noise(99), batch, time, channels, dtype=dtype)
    single = torch.complex64 if complex_ else torch.float32
    results = []
    for function, kind in [(linear_scan, single), (linear_scan_reference, dtype)]:
        # Rounded first, so that both run the same factors.
        a, b = (x.to(single).to(kind).requires_grad_() for x in inputs)
        with native.at_level(level):
            h = function(a, b, reverse=reverse)
            results.append((h, *torch.autograd.grad(h, (a, b), v.to(single).to(kind))))
    return max(
        ((got - want).abs().max() / want.abs().max().clamp(min=1e-3)).item()
        for got, want in zip(*results, strict=True)
    )


@pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")
def test_compiled_scans_keep_what_is_not_a_number_and_do_without_strides():
    noise = Noise(5)
    a, b = factors(noise, 2, 3).float(), values(noise, 7, 2, 2, 3).float()
    b[4, 0, 1, 2] = torch.nan
    h = linear_scan(a, b.transpose(0, 1))
    assert torch.equal(h.isnan(), linear_scan(a, b.transpose(0, 1).contiguous()).isnan())
    assert h[0, 4:, 1, 2].isnan().all() and h.isnan().sum() == 3
    with native.without():
        other = linear_scan(a, b.transpose(0, 1))
    torch.testing.assert_close(h, other, equal_nan=True)
    assert linear_scan(a, torch.zeros(0, 4, 2, 3)).shape == (0, 4, 2, 3)


def test_shapes_that_do_not_fit_are_refused():
    b = torch.zeros(2, 5, 3)
    for shape in [(2,), (3, 5, 3), (2, 4, 3), (2, 5, 1)]:
        with pytest.raises(ValueError, match=r"`linear_scan` needs a of shape"):
            linear_scan(torch.zeros(shape), b)
