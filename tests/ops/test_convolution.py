"""Causal convolution: the direct sum, its fast forms, and their derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise, global_stream
from robustssm.ops import convolution
from robustssm.ops.convolution import (
    causal_convolution,
    causal_convolution_reference,
    prepared_kernel,
)
from robustssm.ops.kernels import native, torch_convolution
from robustssm.testing import tolerances

FORMS = ["fft", "toeplitz"]


def problem(batch=3, length=11, channels=4, *, dtype=torch.float64, seed=0):
    noise = Noise(seed)
    u = noise.normal(batch, length, channels, dtype=dtype)
    return u, noise.normal(channels, length, dtype=dtype)


def test_reference_is_the_double_sum():
    u, kernel = problem(2, 5, 3)
    y = torch.zeros_like(u)
    for t in range(5):
        for s in range(t + 1):
            y[:, t] += kernel[:, t - s] * u[:, s]
    torch.testing.assert_close(causal_convolution_reference(u, kernel), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", [None, *FORMS])
@given(batch=st.integers(1, 5), length=st.integers(1, 70), channels=st.integers(1, 5))
def test_every_form_is_the_reference(form, batch, length, channels):
    u, kernel = problem(batch, length, channels, seed=length)
    expected = causal_convolution_reference(u, kernel)
    scale = expected.abs().max().item()
    y = causal_convolution(u, kernel, form=form)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12 * scale)
    assert y.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 6, 7])
def test_gradients(form, length):
    u, kernel = (v.requires_grad_() for v in problem(2, length, 3))

    def convolve(a, b):
        return causal_convolution(a, b, form=form)

    assert torch.autograd.gradcheck(convolve, (u, kernel))
    with global_stream(Noise(1)):  # it draws its own output gradients
        assert torch.autograd.gradgradcheck(convolve, (u, kernel))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_over_several_chunks_and_a_scattered_input(form, monkeypatch):
    monkeypatch.setattr(torch_convolution, "_CHUNK", 100)  # two of five rows at a time
    u, kernel = problem(5, 12, 4)
    u = u.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # same values, channels outermost
    weight = Noise(1).normal(5, 12, 4, dtype=torch.float64)
    outcomes = []
    for conv in (lambda a, b: causal_convolution(a, b, form=form), causal_convolution_reference):
        a, b = u.detach().requires_grad_(), kernel.detach().requires_grad_()
        y = conv(a, b)
        outcomes.append((y, *torch.autograd.grad((y * weight).sum(), (a, b))))
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_detached_kernel_gets_no_gradient_and_the_input_the_same(form):
    u, kernel = (v.requires_grad_() for v in problem())
    y = causal_convolution(u, kernel, form=form).square().sum()
    (both,) = torch.autograd.grad(y, u)
    alone = causal_convolution(u, kernel.detach(), form=form).square().sum()
    assert torch.equal(torch.autograd.grad(alone, u)[0], both)
    only_kernel = causal_convolution(u.detach(), kernel, form=form).square().sum()
    assert torch.autograd.grad(only_kernel, kernel)[0].shape == kernel.shape


@pytest.mark.parametrize("form", FORMS)
def test_the_adjoint_is_the_convolution_in_reversed_time(form):
    u, kernel = problem(2, 9, 3)
    v = Noise(2).normal(2, 9, 3, dtype=torch.float64)
    left = (causal_convolution(u, kernel, form=form) * v).sum()
    right = (u * causal_convolution(v.flip(1), kernel, form=form).flip(1)).sum()
    torch.testing.assert_close(left, right, rtol=1e-11, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [64, 784])
def test_float32_is_near_float64(form, length):
    u, kernel = problem(2, length, 4)
    expected = causal_convolution(u, kernel, form="fft")
    found = causal_convolution(u.float(), kernel.float(), form=form)
    assert found.dtype is torch.float32
    scale = expected.abs().max().item()
    tolerance = tolerances.CONVOLUTION[form] * scale
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_the_form_is_chosen_by_length_dtype_and_what_is_there():
    def chosen(length, dtype):
        return prepared_kernel(problem(1, length, 1, dtype=dtype)[1]).form

    assert chosen(convolution.TOEPLITZ_UP_TO, torch.float64) == "toeplitz"
    assert chosen(convolution.TOEPLITZ_UP_TO + 1, torch.float64) == "fft"
    if native.state().level:
        assert chosen(convolution.DIRECT_UP_TO, torch.float32) == "compiled_direct"
        assert chosen(convolution.DIRECT_UP_TO + 1, torch.float32) == "compiled_fft"
    with native.without():
        assert chosen(convolution.TOEPLITZ_UP_TO, torch.float32) == "toeplitz"


@pytest.mark.parametrize("form", FORMS)
def test_a_prepared_kernel_serves_many_and_passes_gradients_on(form):
    u, kernel = (v.requires_grad_() for v in problem())
    prepared = prepared_kernel(kernel, form=form)
    for factor in (1, 2):
        x = factor * u
        y, expected = causal_convolution(x, prepared), causal_convolution(x, kernel, form=form)
        assert torch.equal(y, expected)
        pair = [
            torch.autograd.grad(out.square().sum(), (u, kernel), retain_graph=True)
            for out in (y, expected)
        ]
        assert all(torch.equal(one, other) for one, other in zip(*pair, strict=True))
