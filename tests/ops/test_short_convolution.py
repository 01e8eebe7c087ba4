"""The short convolution against the sum as it is written, in float64, with all gradients."""

import pytest
import torch

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise, global_stream
from robustssm.ops.kernels import cpu_short_convolution, native
from robustssm.ops.short_convolution import short_convolution, short_convolution_reference

F64 = torch.float64
SHAPES = [  # batch, length, channels, taps
    *((1, 1, 1, 1), (2, 3, 7, 4), (1, 31, 16, 4), (3, 128, 17, 3), (2, 129, 5, 4)),
    *((1, 300, 40, 2), (2, 2, 3, 5), (1, 20, 64, 16), (1, 9, 3, 17), (1, 140, 6, 9)),
]
TOLERANCE = 1.5e-6
"""Of the largest entry. Measured over all tests here and three levels: 6.8e-7."""

compiled = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def problem(batch, length, channels, taps, dtype=torch.float32):
    noise = Noise(length)
    shapes = ((batch, length, channels), (channels, taps), (channels,), (batch, length, channels))
    x, weight, bias, v = (noise.normal(*shape).to(dtype) for shape in shapes)
    return (x, weight, bias), v


def outcome(convolve, inputs, v):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = convolve(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, v)


def exact(inputs, v):
    return outcome(short_convolution_reference, [x.double() for x in inputs], v.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_operations_are_the_sum(shape):
    inputs, v = problem(*shape, dtype=F64)
    found = outcome(short_convolution, inputs, v)
    torch.testing.assert_close(found, exact(inputs, v), rtol=1e-9, atol=1e-12)


@compiled
@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v3", "generic"])
def test_compiled_code_is_the_sum(level):
    here = native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ())
    if level not in (*here, "generic"):
        pytest.skip("not for this processor")
    with native.at_level(level):
        for shape in SHAPES:
            inputs, v = problem(*shape)
            found = outcome(short_convolution, inputs, v)
            for got, want in zip(found, exact(inputs, v), strict=True):
                assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


@compiled
def test_one_thread_or_three_and_columns_of_wider_rows_give_the_same_bytes():
    inputs, v = problem(3, 300, 37, 4)
    wide = torch.cat([v, inputs[0], v], -1)
    outcomes = []
    for threads, x in ((1, inputs[0]), (3, inputs[0]), (2, wide[..., 37:74])):
        with cpu_threads(threads):
            outcomes.append(outcome(short_convolution, (x, *inputs[1:]), v))
    turned = inputs[0].mT.contiguous().mT
    outcomes.append(outcome(short_convolution, (turned, *inputs[1:]), v.mT.contiguous().mT))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@compiled
def test_weights_without_gradient_cost_none(monkeypatch):
    inputs, v = problem(2, 140, 5, 4)
    _, dx, *_ = outcome(short_convolution, inputs, v)
    seen, back = [], cpu_short_convolution._back
    monkeypatch.setattr(cpu_short_convolution, "_back", lambda *x: seen.append(x[5]) or back(*x))
    x = inputs[0].requires_grad_()
    (alone,) = torch.autograd.grad(short_convolution(x, *inputs[1:]), x, v)
    assert torch.equal(alone, dx) and seen == [None]


@compiled
def test_backward_keeps_its_inputs_alone():
    inputs, _ = problem(2, 64, 8, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda x: x):
        short_convolution(*(x.requires_grad_() for x in inputs))
    assert set(kept) == {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_of_gradients(dtype):
    inputs, v = problem(2, 6, 3, 4, dtype=F64)
    seconds = []
    for convolve, kind in ((short_convolution, dtype), (short_convolution_reference, F64)):
        given = [x.to(kind).requires_grad_() for x in inputs]
        first = torch.autograd.grad(convolve(*given), given, v.to(kind), create_graph=True)
        seconds.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), given)
        )
    for got, want in zip(*seconds, strict=True):
        limit = 1e-9 if dtype == F64 else 5e-6
        assert (got - want).abs().max() < limit * want.abs().max()


def test_gradcheck():
    inputs, _ = problem(1, 5, 2, 3, dtype=F64)
    with global_stream(Noise(1)):
        assert torch.autograd.gradcheck(short_convolution, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_causal_and_nan_and_infinity_do_not_vanish(dtype):
    (x, weight, bias), _ = problem(2, 40, 20, 4, dtype=dtype)
    for bad in (torch.nan, torch.inf):
        x[0, 9, 3] = bad
        y = short_convolution(x, weight, bias)
        assert not y[0, 9:13, 3].isfinite().all() and y[1].isfinite().all()
        assert y[0, :9].isfinite().all() and y[0, :, torch.arange(20) != 3].isfinite().all()
    huge = short_convolution(x[1:] * 1e30, weight, bias)
    assert huge.isfinite().all() and huge.max() > 1e30 and huge.min() > -1e-20


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_empty_batch(dtype):
    inputs, v = problem(0, 5, 3, 4, dtype=dtype)
    y, dx, dweight, dbias = outcome(short_convolution, inputs, v)
    assert y.shape == dx.shape == v.shape
    assert not dweight.any() and not dbias.any()


def test_shapes_that_do_not_fit_are_refused():
    (x, weight, bias), _ = problem(2, 5, 3, 4)
    unchecked = getattr(short_convolution, "__wrapped__", short_convolution)  # by the annotations
    with pytest.raises(ValueError, match=r"must have shapes \(channels, taps\)"):
        unchecked(x, weight[:2], bias)
