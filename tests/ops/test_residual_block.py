"""The compiled block against its parts in float64, in every combination of them."""

import itertools
import math

import pytest
import torch

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.convolution import prepared_kernel
from robustssm.ops.kernels import native
from robustssm.ops.residual_block import (
    Dense,
    PreparedBlock,
    residual_block,
    residual_block_reference,
    supports,
)
from robustssm.testing import tolerances

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")

GATES = [(None, False), ("relu", False), ("sigmoid", True), ("tanh", True)]
MIXING = [(True, True), (True, False), (False, False)]


def make(
    channels,
    length,
    *,
    norm="pre",
    residual=True,
    gate=None,
    shift=False,
    gelu=True,
    mixing=True,
    mixing_gelu=False,
    dtype=torch.float32,
):
    noise = Noise(0)

    def draw(name, *shape):
        return noise.fork(name).normal(*shape).to(dtype)

    def dense(name, bias=True):
        weight = draw(name, channels, channels) / channels**0.5
        return Dense.of(weight, draw(name + "_bias", channels) / 3 if bias else None)

    decay = torch.exp(-torch.arange(length) / 10).to(dtype)
    has_norm = norm != "none"
    return PreparedBlock(
        kernel=prepared_kernel(draw("kernel", channels, length) * decay),
        norm=norm,
        gain=1 + draw("gain", channels) / 5 if has_norm else None,
        offset=draw("offset", channels) / 5 if has_norm else None,
        epsilon=1e-5,
        residual=residual,
        gate=gate,
        scale=dense("scale", bias=shift) if gate else None,
        shift=dense("shift") if shift else None,
        gelu=gelu,
        mixing=dense("mixing") if mixing else None,
        mixing_gelu=mixing_gelu,
    )


def outcome(h, block, run):
    h = h.detach().clone().requires_grad_()
    out = run(h, block)
    weight = Noise(6).normal(*h.shape).to(h.dtype)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), h)


def near(found, expected, tolerance=tolerances.BLOCK):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
@pytest.mark.parametrize("channels, length", [(32, 64), (16, 200), (48, 7), (128, 50)])
def test_every_combination_of_parts(norm, channels, length):
    h = Noise(5).normal(2, length, channels)
    for (gate, shift), (mixing, last), gelu, residual in itertools.product(
        GATES, MIXING, (True, False), (True, False)
    ):
        chosen = {"norm": norm, "gate": gate, "shift": shift, "gelu": gelu}
        chosen |= {"residual": residual, "mixing": mixing, "mixing_gelu": last}
        block = make(channels, length, **chosen)
        found = outcome(h, block, residual_block)
        double = make(channels, length, **chosen, dtype=torch.float64)
        near(found, outcome(h.double(), double, residual_block_reference))
        with torch.no_grad():
            assert torch.equal(residual_block(h, block), found[0]), "nothing kept, same bits"


@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v3", "generic"])
def test_every_library(level):
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    h = Noise(5).normal(3, 200, 48)
    chosen = {"norm": "post", "gate": "tanh", "shift": True, "mixing_gelu": True}
    with native.at_level(level):
        found = outcome(h, make(48, 200, **chosen), residual_block)
    double = make(48, 200, **chosen, dtype=torch.float64)
    near(found, outcome(h.double(), double, residual_block_reference))


def test_the_same_bytes_on_one_and_two_threads_and_for_a_row_alone():
    h, block = Noise(5).normal(5, 100, 32), make(32, 100, norm="post", mixing_gelu=True)
    outcomes = []
    for threads in (1, 2):
        with cpu_threads(threads):
            outcomes.append(outcome(h, block, residual_block))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert torch.equal(residual_block(h[3:4], block)[0], outcomes[0][0][3])


def test_second_derivatives_and_scattered_memory():
    h, block = Noise(5).normal(2, 9, 16), make(16, 9)
    seconds = []
    for run in (residual_block, residual_block_reference):
        x = h.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
        (first,) = torch.autograd.grad(run(x, block).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x))
    near(*seconds, 1e-4)


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_nan_stays_where_it_is(norm):
    h, block = Noise(5).normal(2, 20, 16), make(16, 20, norm=norm, gate="relu")
    h[0, 7, 3] = torch.nan
    out, gradient = outcome(h, block, residual_block)
    assert out[0, 7:].isnan().all() and out[1].isfinite().all()
    assert gradient[0].isnan().any() and gradient[1].isfinite().all()


@pytest.mark.parametrize("size", [-40.0, -9.0, -1e-4, 0.0, 1e-4, 9.0, 40.0])
def test_gelu_far_out_and_near_zero(size):
    block = make(16, 1, norm="none", residual=False, mixing=False)
    plain = prepared_kernel(torch.ones(16, 1))
    block = PreparedBlock(**{**vars(block), "kernel": plain})
    x = torch.full((1, 1, 16), size, requires_grad=True)
    y = residual_block(x, block)
    (slope,) = torch.autograd.grad(y.sum(), x)
    # torch's own form cancels far out on the left, even in float64
    below = math.erfc(-size / math.sqrt(2)) / 2
    expected = size * below
    expected_slope = below + size * math.exp(-(size**2) / 2) / math.sqrt(2 * math.pi)
    for one, other in ((y, expected), (slope, expected_slope)):
        assert abs(one[0, 0, 0].item() - other) <= 2e-6 * max(abs(other), 1e-30)


def test_what_it_does_not_take():
    kernel = make(32, 20).kernel
    assert supports(torch.zeros(2, 20, 32), kernel)
    assert not supports(torch.zeros(2, 20, 32, dtype=torch.float64), kernel)
    assert not supports(torch.zeros(2, 20, 33), kernel), "channels do not fill vectors"
    with native.without():
        assert not supports(torch.zeros(2, 20, 32), kernel)
        assert not supports(torch.zeros(2, 20, 32), make(32, 20).kernel)
