"""The selective scan in Triton against the loop that defines it, in float64, with all gradients."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.kernels import triton_selective_scan
from robustssm.ops.kernels.triton_selective_scan import selective_scan, supports
from robustssm.ops.selective_scan import selective_scan_reference

# Relative to the largest entry of the float64 result; measured 1.3e-6 in the interpreter.
TOLERANCE = 2e-6
NAMES = ("y", "u", "delta", "A", "B", "C", "D")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The interpreter goes through a scan number by number; a GPU keeps its tiles."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_selective_scan, "_LANES", 4)
        tile = triton_selective_scan._tile
        monkeypatch.setattr(triton_selective_scan, "_tile", lambda n: (8, *tile(n)[1:]))


def drawn(batch, time, channels, state, device):
    noise = Noise(time)
    normal = lambda name, *shape: noise.fork(name).normal(*shape).to(device)  # noqa: E731
    delta = torch.nn.functional.softplus(normal("delta", batch, time, channels) - 1)
    A = -(0.3 + normal("A", channels, state).abs()) * torch.arange(1, state + 1, device=device)
    B, C = (normal(name, batch, time, state) for name in "BC")
    return [normal("u", batch, time, channels), delta, A, B, C, normal("D", channels)]


def results(function, inputs, dtype):
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    y = function(*inputs)
    v = Noise(5).normal(*y.shape).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, v)]


def close(found, wanted, tolerance):
    for name, got, expected in zip(NAMES, found, wanted, strict=True):
        error = (got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error}"


def agree(inputs, tolerance):
    found = results(selective_scan, inputs, torch.float32)
    close(found, results(selective_scan_reference, inputs, torch.float64), tolerance)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 3, 2), (1, 33, 5, 3), (2, 17, 1, 8), (1, 100, 1, 1)], ids=str
)
def test_values_and_gradients_are_those_of_the_loop(shape, device):
    agree(drawn(*shape, device), TOLERANCE)


def test_small_gradients_do_not_cancel(device):
    """Of A where states decay at once: exp(delta A) h, which is not h - delta B u in float32."""
    u, delta, A, B, C, D = drawn(1, 12, 2, 2, device)
    inputs = [u, torch.full_like(delta, 1.0), torch.full_like(A, -20.0), B, C, D]
    found = results(selective_scan, inputs, torch.float32)[3]
    wanted = results(selective_scan_reference, inputs, torch.float64)[3]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("delta", [0.0, 1e4])
def test_steps_that_keep_everything_or_nothing(delta, device):
    inputs = drawn(1, 10, 2, 2, device)
    inputs[1] = torch.full_like(inputs[1], delta)
    agree(inputs, TOLERANCE)


def test_inputs_in_bf16(device):
    inputs = drawn(2, 9, 3, 2, device)
    for k in (0, 1, 3, 4):
        inputs[k] = inputs[k].bfloat16()
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = selective_scan(*leaves)
    slopes = torch.autograd.grad(y.sum(), leaves)
    assert [x.dtype for x in (y, *slopes)] == [inputs[0].dtype, *(x.dtype for x in inputs)]
    expected = selective_scan_reference(*(x.double() for x in inputs))
    # The interpreter cuts bits off, a GPU rounds.
    assert (y.double() - expected).abs().max() <= 2**-7 * expected.abs().max()


def test_inputs_need_not_be_contiguous(device):
    inputs = drawn(2, 9, 3, 2, device)
    strided = [x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs]
    assert not strided[0].is_contiguous()
    for got, expected in zip(
        results(selective_scan, strided, torch.float32),
        results(selective_scan, inputs, torch.float32),
        strict=True,
    ):
        assert torch.equal(got, expected)


def test_nan_in_nan_out_from_there_on(device):
    inputs = drawn(2, 12, 5, 3, device)
    inputs[0][1, 6, 4] = torch.nan
    y = selective_scan(*inputs)
    assert y[1, 6:, 4].isnan().all()
    assert y.isnan().sum() == 6
    y, *slopes = results(selective_scan, inputs, torch.float32)
    assert slopes[2][4].isnan().all() and not slopes[2][:4].isnan().any()


def test_second_derivatives(device):
    found = []
    for function, dtype in [(selective_scan, torch.float32), (selective_scan_reference, None)]:
        x = [v.to(dtype or torch.float64).requires_grad_() for v in drawn(1, 4, 2, 2, device)]
        slopes = torch.autograd.grad(function(*x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), x))
    for got, expected in zip(*found, strict=True):
        assert (got.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_is_not_supported_is_said(device):
    inputs = drawn(2, 4, 3, 2, device)
    u, delta, A, B, C, D = inputs
    many = (A.repeat(1, 80), B.repeat(1, 1, 80), C.repeat(1, 1, 80))
    for changed, reason in [
        ((u.double(), *inputs[1:]), "u must be float32 or bfloat16"),
        ((u, delta, A.double(), B, C, D), "A and D must be float32"),
        ((u, delta, *many, D), "at most 128 states"),
        ((u[:0], delta[:0], A, B[:0], C[:0], D), "empty"),
        ((u, delta, A, B, C, D.to("meta")), "one device"),
    ]:
        assert reason in supports(*changed).reason
        with pytest.raises(ValueError, match=reason):
            selective_scan(*changed)
    assert "euler" in supports(*inputs, discretization="zoh").reason
    assert supports(*inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("state", [1, 3, 16, 32, 64, 128])
@pytest.mark.parametrize("shape", [(4, 1024, 64), (3, 1000, 33), (1, 2049, 5)])
def test_on_a_gpu(shape, state):
    agree(drawn(*shape, state, "cuda"), 2e-5)


@pytest.mark.gpu
def test_gradients_repeat_bit_for_bit_on_a_gpu():
    inputs = drawn(8, 500, 200, 16, "cuda")
    runs = [results(selective_scan, inputs, torch.float32) for _ in range(2)]
    assert all(torch.equal(once, again) for once, again in zip(*runs, strict=True))
