"""The compiled system against its loop in float64, and both against torch, with all gradients."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.mimo import mimo_scan, mimo_scan_reference

F64 = torch.float64
LEVELS = ("x86_64_v4", "x86_64_v3", "generic")

TOLERANCE = 5e-6
"""Of float32, relative to the largest entry. Measured 1.6e-6, the worst of y and all gradients at
the sizes below with 20 seeds, |a| up to 0.9999, every level; 1.5e-6 at (2, 1024, 128, 64), and in
torch 8.7e-7."""

SHAPES = [  # batch, length, channels, modes
    (1, 1, 5, 3),
    (3, 2, 16, 16),
    (1, 63, 17, 33),
    (3, 64, 32, 16),
    (2, 65, 1, 1),
    (1, 100, 37, 21),
    (9, 49, 130, 8),
]

needs_library = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def system(batch, length, channels, modes, *, dtype=torch.float32, seed=0, high=0.9999):
    """u, into, out, a and skip, of unit scale, and a gradient of y."""
    noise = Noise(seed)

    def draw(name, *shape):
        return noise.fork(name).normal(*shape, dtype=F64)

    radius = noise.fork("radius").uniform(modes, low=0.5, high=high, dtype=F64)
    a = torch.polar(radius, 6 * noise.fork("angle").uniform(modes, dtype=F64))
    inputs = (
        draw("u", batch, length, channels),
        draw("into", 2 * modes, channels) / channels**0.5,
        draw("out", 2 * modes, channels) / modes**0.5,
        a,
        draw("skip", channels),
    )
    made = [x.to(dtype.to_complex() if x.is_complex() else dtype) for x in inputs]
    return made, draw("dy", batch, length, channels).to(dtype)


def outcome(function, inputs, dy, wanted=(0, 1, 2, 3, 4)):
    """y, and the gradients with respect to the inputs wanted."""
    inputs = [x.detach().requires_grad_(k in wanted) for k, x in enumerate(inputs)]
    y = function(*inputs)
    chosen = [inputs[k] for k in wanted]
    return [y.detach(), *torch.autograd.grad(y, chosen, dy, materialize_grads=True)]


def widened(inputs):
    return [x.to(torch.complex128 if x.is_complex() else F64) for x in inputs]


def agree(found, expected, tolerance=TOLERANCE):
    for name, got, want in zip(("y", *"u into out a skip".split()), found, expected, strict=True):
        scale = want.abs().max().clamp(min=1e-3)
        worst = ((got - want).abs().max() / scale).item()
        assert worst <= tolerance, f"{name}: {worst:.1e}"


@needs_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_code_is_the_loop_with_all_gradients(shape, level):
    inputs, dy = system(*shape, seed=shape[1])
    expected = outcome(mimo_scan_reference, widened(inputs), dy.double())
    with native.at_level(level):
        agree(outcome(mimo_scan, inputs, dy), expected)
    with native.without():
        agree(outcome(mimo_scan, inputs, dy), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_is_the_loop_in_float64(shape):
    inputs, dy = system(*shape, dtype=F64)
    agree(outcome(mimo_scan, inputs, dy), outcome(mimo_scan_reference, inputs, dy), 1e-12)


def test_gradients_pass_torchs_check_by_differences():
    inputs, _ = system(2, 5, 3, 2, dtype=F64)
    inputs = [x.requires_grad_() for x in inputs]
    with global_stream(Noise(98)):
        assert torch.autograd.gradcheck(mimo_scan, inputs)
        assert torch.autograd.gradgradcheck(mimo_scan, inputs)


@needs_library
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3, 4), (0,), (1, 3)], ids=str)
def test_second_derivatives_of_compiled_code_are_those_of_the_loop(wanted):
    def second(function, inputs, dy):
        inputs = [x.detach().requires_grad_(k in wanted) for k, x in enumerate(inputs)]
        chosen = [inputs[k] for k in wanted]
        dy = dy.clone().requires_grad_()
        first = torch.autograd.grad(function(*inputs), chosen, dy, create_graph=True)
        loss = sum(x.abs().square().sum() for x in first)
        return torch.autograd.grad(loss, [dy, *chosen], materialize_grads=True)

    inputs, dy = system(2, 20, 5, 3, high=0.9)
    found = second(mimo_scan, inputs, dy)
    expected = second(mimo_scan_reference, widened(inputs), dy.double())
    for got, want in zip(found, expected, strict=True):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@needs_library
@pytest.mark.parametrize("shape", [(1, 100, 37, 21), (3, 65, 24, 40), (9, 49, 16, 8)], ids=str)
def test_bytes_do_not_depend_on_threads_or_on_which_gradients_are_wanted(shape):
    inputs, dy = system(*shape)
    expected = outcome(mimo_scan, inputs, dy)
    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            found = outcome(mimo_scan, inputs, dy)
            assert all(map(torch.equal, found, expected))
            assert all(map(torch.equal, outcome(mimo_scan, inputs, dy, (0,)), expected))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(outcome(mimo_scan, inputs, dy, (3,))[1], expected[4])


@needs_library
def test_strides_and_lazy_conjugates_change_nothing():
    (u, into, out, a, skip), dy = system(3, 30, 20, 7)
    expected = outcome(mimo_scan, (u, into, out, a, skip), dy)
    strided = (
        u.transpose(0, 1).contiguous().transpose(0, 1),
        into.T.contiguous().T,
        out.repeat(1, 2)[:, :20],
        a.conj_physical().conj(),
        skip.repeat_interleave(2)[::2],
    )
    assert strided[3].is_conj() and not strided[0].is_contiguous()
    y = mimo_scan(*(x.requires_grad_() for x in strided))
    found = torch.autograd.grad(y, strided, dy.flip(0).flip(0).expand_as(dy))
    assert torch.equal(y, expected[0])
    for got, want in zip(found, expected[1:], strict=True):
        assert torch.equal(got, want)
    ones = torch.ones(()).expand(3, 30, 20)  # the gradient of a sum has no strides at all
    for got, want in zip(
        outcome(mimo_scan, strided, ones), outcome(mimo_scan, strided, ones.clone()), strict=True
    ):
        assert torch.equal(got, want)


@needs_library
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_a_number_stays_one_from_where_it_comes_in(bad):
    inputs, dy = system(2, 100, 5, 3)
    inputs[0][1, 60, 2] = bad
    y, du, *others = outcome(mimo_scan, inputs, dy)
    assert y[0].isfinite().all() and y[1, :60].isfinite().all()
    assert not y[1, 60:].isfinite().any() and du.isfinite().all()
    assert not others[0].isfinite().all() and not others[2].isfinite().any()


def test_the_gradient_of_inputs_alone_keeps_nothing_and_sums_nothing(monkeypatch):
    inputs, dy = system(2, 30, 5, 3)
    monkeypatch.setattr(cpu_scan, "system_gradients", None)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        outcome(mimo_scan, inputs, dy, (0,))
    if native.available():
        assert sum(kept) == sum(x.numel() for x in inputs[1:])


def test_empty_batches_and_sequences():
    for batch, length in [(0, 7), (2, 0)]:
        inputs, dy = system(batch, length, 5, 3)
        if length or native.available():
            y, *gradients = outcome(mimo_scan, inputs, dy)
            assert y.shape == (batch, length, 5)
            assert not any(g.any() for g in gradients)


def test_heights_that_do_not_fit_are_refused():
    (u, into, out, a, skip), _ = system(1, 2, 3, 4)
    with pytest.raises(ValueError, match="two rows of into and out for each entry of a"):
        mimo_scan(u, into, out, a[:3], skip)
