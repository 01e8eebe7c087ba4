"""Who decides that Triton serves a device, with its interpreter in the place of a GPU."""

import warnings

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution, prepared_kernel
from robustssm.ops.kernels import gpu, triton_scan
from robustssm.ops.kernels.triton_support import available
from robustssm.ops.scan import linear_scan
from robustssm.ops.selective_scan import selective_scan

pytestmark = pytest.mark.skipif(not available(), reason="no Triton")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew(device):
    """`device` also mends the interpreter."""
    gpu.trusted.cache_clear()
    yield
    gpu.trusted.cache_clear()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu, "_TIME", 11)
        monkeypatch.setattr(gpu, "_WIDTH", 3)
        monkeypatch.setattr(triton_scan, "_STEPS", 8)
        monkeypatch.setattr(triton_scan, "_LANES", 2)


def test_the_kernels_pass_their_check():
    assert max(gpu._checks(CPU)) < 1e-5
    assert gpu.trusted(CPU, gpu._checks)


@pytest.mark.parametrize(
    "checks, reason",
    [
        (lambda device: [0.0, 0.01], "differ from torch by 1e-02"),
        (lambda device: [float("nan")], "differ from torch by nan"),
        (lambda device: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_fails_is_said_once_and_not_used(checks, reason):
    with pytest.warns(RuntimeWarning, match=reason):
        assert not gpu.trusted(CPU, checks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu.trusted(CPU, checks)


def test_tensors_of_the_cpu_are_not_its_business():
    assert not gpu.serves(torch.zeros(2))


def test_scans_go_there_and_come_back_the_same(monkeypatch):
    noise = Noise(0)
    u, delta, B, C = (noise.fork(name).normal(2, 20, 4) for name in "udBC")
    inputs = u, delta.abs(), -noise.fork("A").normal(4, 4).abs(), B, C, noise.fork("D").normal(4)
    b = noise.fork("b").normal(2, 20, 4)
    a = noise.fork("a").uniform(4)
    with_zoh = selective_scan(*inputs, discretization="zoh")
    expected = selective_scan(*inputs, gate=u), linear_scan(a, b, reverse=True)
    monkeypatch.setattr("robustssm.ops.selective_scan.native.available", lambda *_: False)
    monkeypatch.setattr(gpu, "serves", lambda x: True)
    found = selective_scan(*inputs, gate=u), linear_scan(a, b, reverse=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # what Triton does not support goes to torch
    found = selective_scan(*inputs, discretization="zoh")
    torch.testing.assert_close(found, with_zoh, rtol=1e-4, atol=1e-5)


def test_the_convolution_can_be_asked_for():
    u, kernel = Noise(0).normal(2, 33, 4), Noise(1).normal(4, 33)
    expected = causal_convolution(u, kernel)
    found = causal_convolution(u, prepared_kernel(kernel, form="triton"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
