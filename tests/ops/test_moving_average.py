"""Every form of the moving averages against their loop in float64, with all gradients."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.moving_average import (
    moving_average,
    moving_average_reference,
    prepared_averages,
)

F64 = torch.float64
LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
TORCH_FORMS = ("convolution", "toeplitz")

TOLERANCE = 1e-5
"""Of float32, relative to the largest entry, for factors that float32 can hold. Measured 2.8e-6,
the worst of y and all gradients at the sizes below with 20 seeds, q up to 0.9999, every level;
1.5e-6 at (2, 1024, 64, 16, 2). The other forms: 2.3e-6 by matrices, 1.0e-6 by convolution."""

SHAPES = [  # batch, length, channels, averages, ways
    (1, 1, 5, 3, 1),
    (3, 2, 16, 8, 2),
    (1, 63, 17, 16, 1),
    (3, 64, 32, 13, 2),
    (2, 65, 1, 1, 2),
    (1, 100, 37, 7, 2),
    (9, 130, 33, 18, 2),
]

needs_library = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def problem(batch, length, channels, averages, ways, *, dtype=torch.float32, seed=0, high=0.9999):
    """u, q (of which float32 knows every digit), c and skip, and a gradient of y."""
    noise = Noise(seed)
    q = noise.fork("q").uniform(ways, channels, averages, low=0.2, high=high).to(F64)
    c = noise.fork("c").normal(ways, channels, averages) / averages**0.5
    u, dy = (noise.fork(name).normal(batch, length, channels) for name in ("u", "dy"))
    return [u.to(dtype), q, c.to(dtype), noise.fork("skip").normal(channels).to(dtype)], dy.to(
        dtype
    )


def average(form):
    def run(u, q, c, skip):
        return moving_average(u, prepared_averages(q, c, skip, u.shape[1], form=form))

    return run


def outcome(function, inputs, dy, wanted=(0, 1, 2, 3)):
    """y, and the gradients with respect to the inputs wanted."""
    inputs = [x.detach().requires_grad_(k in wanted) for k, x in enumerate(inputs)]
    y = function(*inputs)
    chosen = [inputs[k] for k in wanted]
    return [y.detach(), *torch.autograd.grad(y, chosen, dy, materialize_grads=True)]


def agree(found, expected, tolerance=TOLERANCE):
    for name, got, want in zip(("y", "u", "q", "c", "skip"), found, expected, strict=True):
        scale = want.abs().max().clamp(min=1e-3)
        worst = ((got - want).abs().max() / scale).item()
        assert worst <= tolerance, f"{name}: {worst:.1e}"


@needs_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_code_is_the_loop_with_all_gradients(shape, level):
    inputs, dy = problem(*shape, seed=shape[1])
    expected = outcome(moving_average_reference, [x.double() for x in inputs], dy.double())
    with native.at_level(level):
        agree(outcome(average("compiled_scan"), inputs, dy), expected)


@pytest.mark.parametrize("form", TORCH_FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_forms_are_the_loop(shape, form):
    shape = (*shape[:-1], 2) if form == "toeplitz" else shape  # its matrices are for two ways
    inputs, dy = problem(*shape)
    expected = outcome(moving_average_reference, [x.double() for x in inputs], dy.double())
    with native.without():
        agree(outcome(average(form), inputs, dy), expected)
    wide = [x.double() for x in inputs]
    agree(outcome(average(form), wide, dy.double()), expected, 1e-11)


@pytest.mark.parametrize("form", TORCH_FORMS)
def test_gradients_pass_torchs_check_by_differences(form):
    inputs, _ = problem(2, 5, 3, 2, 2, dtype=F64, high=0.9)
    inputs = [x.requires_grad_() for x in inputs]
    with global_stream(Noise(98)):
        assert torch.autograd.gradcheck(average(form), inputs)
        assert torch.autograd.gradgradcheck(average(form), inputs)


@needs_library
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (0,), (1, 3)], ids=str)
def test_second_derivatives_of_compiled_code_are_those_of_the_loop(wanted):
    def second(function, inputs, dy):
        inputs = [x.detach().requires_grad_(k in wanted) for k, x in enumerate(inputs)]
        chosen = [inputs[k] for k in wanted]
        dy = dy.clone().requires_grad_()
        first = torch.autograd.grad(function(*inputs), chosen, dy, create_graph=True)
        loss = sum(x.square().sum() for x in first)
        return torch.autograd.grad(loss, [dy, *chosen], materialize_grads=True)

    inputs, dy = problem(2, 20, 5, 3, 2, high=0.9)
    found = second(average("compiled_scan"), inputs, dy)
    wide = [x.double() for x in inputs]
    expected = second(moving_average_reference, wide, dy.double())
    for got, want in zip(found, expected, strict=True):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@needs_library
@pytest.mark.parametrize("shape", [(1, 100, 37, 21, 2), (9, 65, 24, 10, 1)], ids=str)
def test_bytes_do_not_depend_on_threads_or_on_which_gradients_are_wanted(shape):
    inputs, dy = problem(*shape)
    run = average("compiled_scan")
    expected = outcome(run, inputs, dy)
    try:
        for threads in (2, 4):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, outcome(run, inputs, dy), expected))
            assert all(map(torch.equal, outcome(run, inputs, dy, (0,)), expected))
    finally:
        torch.set_num_threads(1)


@needs_library
def test_strides_change_nothing():
    (u, q, c, skip), dy = problem(3, 30, 20, 7, 2)
    run = average("compiled_scan")
    expected = outcome(run, (u, q, c, skip), dy)
    strided = (
        u.transpose(0, 1).contiguous().transpose(0, 1),
        q.mT.contiguous().mT,
        c.repeat(1, 1, 2)[..., :7],
        skip.repeat_interleave(2)[::2],
    )
    assert not any(x.is_contiguous() for x in strided)
    assert all(map(torch.equal, outcome(run, strided, dy), expected))
    ones = torch.ones(()).expand(3, 30, 20)  # the gradient of a sum has no strides at all
    narrow = outcome(run, strided, ones)
    assert all(map(torch.equal, narrow, outcome(run, strided, ones.clone())))


@needs_library
def test_not_a_number_stays_one_from_where_it_comes_in():
    inputs, dy = problem(2, 100, 5, 3, 2)
    inputs[0][1, 60, 2] = torch.nan
    run = average("compiled_scan")
    y, du, dq, dc, _ = outcome(run, inputs, dy)
    assert y[1, :, 2].isnan().all() and du.isfinite().all()
    y[1, :, 2] = 0
    assert y.isfinite().all()
    assert dq[:, 2].isnan().all() and dc[:, 2].isnan().all() and dc[:, :2].isfinite().all()
    one_way = run(inputs[0], *(x[:1] for x in inputs[1:3]), inputs[3])
    assert one_way[1, :60].isfinite().all() and one_way[1, 60:, 2].isnan().all()


@needs_library
def test_the_gradient_of_inputs_alone_keeps_nothing_and_sums_nothing(monkeypatch):
    (u, *averages), dy = problem(2, 30, 5, 3, 2)
    monkeypatch.setattr(cpu_scan, "averages_gradients", None)
    kept, made = [], prepared_averages(*averages, 30)
    u.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        y = moving_average(u, made)
    torch.autograd.grad(y, u, dy)
    assert sum(kept) == sum(x.numel() for x in averages)


@pytest.mark.parametrize("form", [None, *TORCH_FORMS])
def test_what_is_prepared_without_gradient_asks_for_none(form):
    (u, *averages), _ = problem(2, 30, 5, 3, 2)
    averages = [torch.nn.Parameter(x) for x in averages]
    assert moving_average(u, prepared_averages(*averages, 30, form=form)).requires_grad
    with torch.no_grad():
        made = prepared_averages(*averages, 30, form=form)
    assert not moving_average(u, made).requires_grad


def test_an_empty_batch():
    inputs, dy = problem(0, 7, 5, 3, 2)
    y, *gradients = outcome(average(None), inputs, dy)
    assert y.shape == (0, 7, 5) and not any(g.any() for g in gradients)


def test_what_does_not_fit_is_refused():
    (u, *averages), _ = problem(1, 4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"got 4 steps and averages for 5\. Call"):
        moving_average(u, prepared_averages(*averages, 5))
    wide = [x.double() for x in averages]
    with pytest.raises(ValueError, match=r"needs float32 weights on the CPU; .*Leave form"):
        prepared_averages(*wide, 5, form="compiled_scan")
