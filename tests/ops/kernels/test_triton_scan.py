"""Scans in Triton against the loops that define them, in double precision, with gradients."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.kernels import triton_scan
from robustssm.ops.kernels.triton_scan import (
    linear_scan,
    moving_average,
    scan_,
    supports_average,
    supports_scan,
)
from robustssm.ops.scan import linear_scan_reference

# Relative to the largest entry of the double-precision result; measured 3.8e-7 and
# 1.0e-6 in the interpreter.
SCAN, AVERAGE = 1e-6, 2e-6
REAL, COMPLEX = torch.float32, torch.complex64
WIDER = {REAL: torch.float64, COMPLEX: torch.complex128}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The interpreter goes through a scan number by number; a GPU keeps its tiles."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_scan, "_STEPS", 8)
        monkeypatch.setattr(triton_scan, "_LANES", 2)


def drawn(noise, *shape, dtype=REAL):
    x = noise.fork("real").normal(*shape)
    return torch.complex(x, noise.fork("imaginary").normal(*shape)) if dtype == COMPLEX else x


def problem(batch, time, channels, *, dtype, a_rows, device):
    """Factors inside the unit disc, for all steps (a_rows None) or for each one."""
    noise = Noise(time)
    shape = (channels,) if a_rows is None else (a_rows, time, channels)
    a = drawn(noise.fork("a"), *shape, dtype=dtype)
    b = drawn(noise.fork("b"), batch, time, channels, dtype=dtype)
    return (a / (a.abs() + 0.05)).to(device), b.to(device)


def close(got, expected, tolerance):
    assert got.dtype == {v: k for k, v in WIDER.items()}[expected.dtype]
    scale = expected.abs().max().clamp_min(1e-30)
    assert (got.to(expected.dtype) - expected).abs().max() <= tolerance * scale


def agree(fast, plain, inputs, tolerance):
    found, wanted = [], []
    for function, tensors, out in [
        (fast, inputs, found),
        (plain, [x.to(WIDER[x.dtype]) for x in inputs], wanted),
    ]:
        tensors = [x.detach().requires_grad_() for x in tensors]
        y = function(*tensors)
        v = drawn(Noise(7), *y.shape, dtype=COMPLEX if y.is_complex() else REAL).to(y)
        out += [y.detach(), *torch.autograd.grad(y, tensors, v)]
    for got, expected in zip(found, wanted, strict=True):
        close(got, expected, tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("a_rows", [None, 1, 3])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
def test_scan_is_the_loop(dtype, a_rows, reverse, device):
    for time, channels in [(1, 1), (5, 3), (33, 2)]:
        agree(
            lambda a, b: linear_scan(a, b, reverse=reverse),
            lambda a, b: linear_scan_reference(a, b, reverse=reverse),
            problem(3, time, channels, dtype=dtype, a_rows=a_rows, device=device),
            SCAN,
        )


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
def test_a_longer_scan_of_one_row(dtype, device):
    inputs = problem(1, 100, 3, dtype=dtype, a_rows=None, device=device)
    agree(linear_scan, linear_scan_reference, inputs, SCAN)


def test_any_number_of_axes_and_mixed_dtypes(device):
    noise = Noise(3)
    b = drawn(noise, 2, 6, 2, 3).to(device)
    a = 0.9 * torch.exp(1j * drawn(noise.fork("a"), 2, 3)).to(device)
    agree(linear_scan, linear_scan_reference, [a, b.to(COMPLEX)], SCAN)
    torch.testing.assert_close(linear_scan(a, b), linear_scan_reference(a, b))
    torch.testing.assert_close(
        linear_scan(a[0, 0].abs(), b[..., 0, 0]), linear_scan_reference(a[0, 0].abs(), b[..., 0, 0])
    )


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
def test_views_are_read_as_they_are(dtype, device):
    a, b = problem(2, 9, 3, dtype=dtype, a_rows=None, device=device)
    strided = b.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(linear_scan(a, strided), linear_scan(a, b))
    assert torch.equal(linear_scan(a.conj(), b), linear_scan(a.conj().resolve_conj(), b))


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
def test_in_place(dtype, device):
    a, b = problem(2, 19, 3, dtype=dtype, a_rows=2, device=device)
    expected = linear_scan(a, b, reverse=True)
    assert scan_(a, b, reverse=True) is b
    assert torch.equal(b, expected)
    with pytest.raises(ValueError, match="contiguous"):
        scan_(a.transpose(1, 2), b.transpose(1, 2))


def test_gradients_repeat_bit_for_bit(device):
    a, b = (x.requires_grad_() for x in problem(5, 20, 3, dtype=REAL, a_rows=None, device=device))
    once, again = (torch.autograd.grad(linear_scan(a, b).square().sum(), a)[0] for _ in range(2))
    assert torch.equal(once, again)


def test_second_derivatives_of_a_scan(device):
    found = []
    inputs = problem(2, 6, 2, dtype=COMPLEX, a_rows=None, device=device)
    for function, dtype in [(linear_scan, COMPLEX), (linear_scan_reference, torch.complex128)]:
        a, b = (x.to(dtype).requires_grad_() for x in inputs)
        value = function(a, b).abs().square().sum()
        slopes = torch.autograd.grad(value, (a, b), create_graph=True)
        found.append(torch.autograd.grad(sum(s.abs().square().sum() for s in slopes), (a, b)))
    for got, expected in zip(*found, strict=True):
        close(got, expected, 1e-5)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
def test_nan_in_nan_out_from_there_on(dtype, device):
    a, b = problem(2, 20, 3, dtype=dtype, a_rows=None, device=device)
    b[1, 10, 1] = torch.nan
    bad = linear_scan(a, b).isnan()
    assert bad[1, 10:, 1].all()
    assert bad.sum() == 10


def averages_reference(u, q, weights, reverse=False):
    b = u[..., None].expand(*u.shape, q.shape[1])
    return (linear_scan_reference(q, b, reverse=reverse) * weights).sum(-1)


def averaging(batch, time, channels, modes, device):
    noise = Noise(time)
    u, weights = noise.fork("u").normal(batch, time, channels), noise.normal(channels, modes)
    q = torch.sigmoid(2 + noise.fork("q").normal(channels, modes))
    return [x.to(device) for x in (u, q, weights)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 3, 4), (1, 33, 2, 3), (2, 18, 1, 16)])
def test_averages_are_the_loop(shape, reverse, device):
    agree(
        lambda *x: moving_average(*x, reverse=reverse),
        lambda *x: averages_reference(*x, reverse),
        averaging(*shape, device),
        AVERAGE,
    )


def test_averages_in_bf16(device):
    u, q, weights = averaging(2, 9, 2, 2, device)
    y = moving_average(u.bfloat16(), q, weights)
    assert y.dtype == torch.bfloat16
    expected = averages_reference(u.bfloat16().float(), q, weights)
    torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=1e-6)


def test_averages_pass_nan_on(device):
    u, q, weights = averaging(2, 9, 3, 2, device)
    u[0, 4, 1] = torch.nan
    bad = moving_average(u, q, weights).isnan()
    assert bad[0, 4:, 1].all()
    assert bad.sum() == 5


def test_second_derivatives_of_averages(device):
    found, inputs = [], averaging(2, 6, 2, 3, device)
    for function, dtype in [(moving_average, torch.float32), (averages_reference, torch.float64)]:
        x = [v.to(dtype).requires_grad_() for v in inputs]
        slopes = torch.autograd.grad(function(*x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), x))
    for got, expected in zip(*found, strict=True):
        close(got, expected, 1e-5)


def test_what_is_not_supported_is_said(device):
    a, b = problem(2, 4, 3, dtype=REAL, a_rows=None, device=device)
    for inputs, reason in [
        ((a.double(), b), "float32 or complex64"),
        ((a[:2], b), "channels"),
        ((a.to("meta"), b), "one device"),
        ((a, b[:0]), "empty"),
    ]:
        assert reason in supports_scan(*inputs).reason
        with pytest.raises(ValueError, match=reason):
            linear_scan(*inputs)
    u, q, weights = averaging(2, 4, 3, 2, device)
    for inputs, reason in [
        ((u.double(), q, weights), "float32 or bfloat16"),
        ((u, q.double(), weights), "rates and weights"),
        ((u[..., :2], q, weights), "2 channels"),
        ((u, q.expand(3, 2).repeat(1, 200), weights.repeat(1, 200)), "at most 256"),
    ]:
        assert reason in supports_average(*inputs).reason


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("a_rows", [None, 1, 8])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
@pytest.mark.parametrize("time, channels", [(1024, 128), (1000, 33), (16384, 5)])
def test_scan_on_a_gpu(dtype, a_rows, reverse, time, channels):
    agree(
        lambda a, b: linear_scan(a, b, reverse=reverse),
        lambda a, b: linear_scan_reference(a, b, reverse=reverse),
        problem(8, time, channels, dtype=dtype, a_rows=a_rows, device="cuda"),
        1e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(8, 1024, 128, 16), (3, 1000, 33, 5), (2, 300, 40, 200)])
def test_averages_on_a_gpu(shape, reverse):
    agree(
        lambda *x: moving_average(*x, reverse=reverse),
        lambda *x: averages_reference(*x, reverse),
        averaging(*shape, "cuda"),
        1e-5,
    )
