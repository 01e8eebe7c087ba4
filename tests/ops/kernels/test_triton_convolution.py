"""Block-Toeplitz convolution in Triton against the sum that defines it, in float64."""

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution_reference
from robustssm.ops.kernels import triton_convolution
from robustssm.ops.kernels.triton_convolution import causal_convolution, convolve, supports

# Relative to the largest entry of the float64 result; measured in the interpreter, where every
# product is float32: 2.1e-7 over these shapes. On a GPU only "ieee" is that.
TOLERANCE = 1e-6
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 33, 3), (3, 100, 5), (17, 33, 2), (2, 160, 1), (70, 6, 2)]


def drawn(batch, length, channels, device):
    noise = Noise(length)
    u = noise.fork("u").normal(batch, length, channels)
    return u.to(device), noise.fork("kernel").normal(channels, length).to(device)


def close(got, expected, tolerance):
    scale = expected.abs().max()
    assert (got.double() - expected).abs().max() <= tolerance * scale


def gradients(function, u, kernel, v):
    inputs = [u.detach().requires_grad_(), kernel.detach().requires_grad_()]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, v)


def agree(u, kernel, precision, tolerance):
    v = Noise(9).normal(*u.shape).to(u)
    fast = lambda *x: causal_convolution(*x, precision=precision)  # noqa: E731
    found = gradients(fast, u, kernel, v)
    wanted = gradients(causal_convolution_reference, u.double(), kernel.double(), v.double())
    for got, expected in zip(found, wanted, strict=True):
        close(got, expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_sums(shape, device):
    agree(*drawn(*shape, device), "ieee", TOLERANCE)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16", None])
def test_every_precision(precision, device):
    tolerance = {"bf16": 1e-2, "tf32": 2e-3}.get(precision, 1e-5)
    agree(*drawn(3, 40, 2, device), precision, tolerance)


def test_products_in_bf16_round_their_operands(device):
    u, kernel = drawn(2, 20, 2, device)
    exact = convolve(u, kernel, precision="ieee")
    error = (convolve(u, kernel, precision="bf16") - exact).abs().max() / exact.abs().max()
    assert 1e-4 < error < 1e-2


def test_bf16_sequences(device):
    u, kernel = drawn(3, 33, 5, device)
    u = u.bfloat16()
    y = causal_convolution(u, kernel, precision="ieee")
    assert y.dtype == torch.bfloat16
    close(y, causal_convolution_reference(u.double(), kernel.double()), 2**-8)


def test_the_adjoint(device):
    u, kernel = drawn(2, 37, 4, device)
    v = Noise(8).normal(*u.shape).to(u)
    forward = (convolve(u, kernel) * v).sum()
    torch.testing.assert_close(forward, (u * convolve(v, kernel, reverse=True)).sum())


def test_inputs_need_not_be_contiguous(device):
    u, kernel = drawn(3, 20, 6, device)
    strided, flipped = u.transpose(0, 1).contiguous().transpose(0, 1), kernel.T.contiguous().T
    torch.testing.assert_close(convolve(strided, flipped), convolve(u, kernel), rtol=0, atol=0)


def test_nan_in_nan_out_and_only_there(device):
    u, kernel = drawn(2, 33, 3, device)
    u[1, 20, 2] = torch.nan
    bad = convolve(u, kernel).isnan()
    assert bad[1, 20:, 2].all()
    assert not bad[0].any() and not bad[1, :, :2].any()


def test_second_derivatives(device):
    u, kernel = (x.requires_grad_() for x in drawn(2, 9, 2, device))
    u64, kernel64 = (x.detach().double().requires_grad_() for x in (u, kernel))
    found = []
    for x, k, function in [
        (u, kernel, causal_convolution),
        (u64, kernel64, causal_convolution_reference),
    ]:
        value = function(x, k).square().sum()
        slopes = torch.autograd.grad(value, (x, k), create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), (x, k)))
    for got, expected in zip(*found, strict=True):
        close(got, expected, 1e-5)


def test_gradients_that_are_not_needed_are_not_computed(device, monkeypatch):
    u, kernel = drawn(2, 9, 2, device)
    monkeypatch.setattr(triton_convolution, "_correlate_summed", None)
    u.requires_grad_()
    causal_convolution(u, kernel).sum().backward()
    assert u.grad is not None


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda u, k: (u.double(), k), "float32 or bfloat16"),
        (lambda u, k: (u, k.double()), "taps must be float32"),
        (lambda u, k: (u[:0], k), "empty"),
        (lambda u, k: (u, k.to("meta")), "one device"),
    ],
)
def test_what_is_not_supported_is_said(change, reason, device):
    inputs = change(*drawn(2, 9, 2, device))
    verdict = supports(*inputs)
    assert not verdict
    with pytest.raises(ValueError, match=reason):
        causal_convolution(*inputs)


def test_taps_of_another_length_are_not_supported(device):
    u, kernel = drawn(2, 9, 2, device)
    assert "(2, 9)" in supports(u, kernel[:, :-1]).reason


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [("ieee", 5e-6), ("tf32x3", 1e-5), ("tf32", 3e-3)])
@pytest.mark.parametrize("shape", [(16, 1024, 64), (3, 1000, 33), (65, 784, 5), (1, 4097, 3)])
def test_on_a_gpu(shape, precision, tolerance):
    agree(*drawn(*shape, "cuda"), precision, tolerance)
