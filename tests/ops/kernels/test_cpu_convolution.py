"""The compiled convolutions against the definition in float64."""

import pytest
import torch

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution, causal_convolution_reference
from robustssm.ops.kernels import cpu_convolution, native
from robustssm.testing import tolerances

FORMS = ["compiled_direct", "compiled_fft"]
LEVELS = ["x86_64_v4", "x86_64_v3", "generic"]
SHAPES = [(1, 1, 1), (3, 7, 5), (2, 8, 16), (9, 33, 17), (2, 100, 3), (2, 300, 40), (1, 600, 16)]

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def outcome(u, kernel, weight, convolve):
    u, kernel = u.detach().requires_grad_(), kernel.detach().requires_grad_()
    y = convolve(u, kernel)
    return y.detach(), *torch.autograd.grad((y * weight).sum(), (u, kernel))


def problem(batch, length, channels, seed=0):
    noise = Noise(seed)
    u, weight = (
        noise.normal(batch, length, channels),
        noise.fork("w").normal(batch, length, channels),
    )
    return u, noise.fork("k").normal(channels, length), weight


def near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale + 1e-30)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, level):
    if level not in native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("generic",)):
        if level != "generic":
            pytest.skip("not for this processor")
    with native.at_level(level):
        for shape in SHAPES:
            u, kernel, weight = problem(*shape)
            double = [v.double() for v in (u, kernel, weight)]
            expected = outcome(*double, causal_convolution_reference)
            found = outcome(*(u, kernel, weight), lambda a, b: causal_convolution(a, b, form=form))
            near(found, expected, tolerances.CONVOLUTION[form])


@pytest.mark.parametrize("level", LEVELS)
def test_one_channel_at_a_time_at_every_length(level, monkeypatch):
    """As long sequences are transformed, with vectors of tokens; here at lengths of all kinds."""
    monkeypatch.setattr(cpu_convolution, "BESIDE_UP_TO", 0)
    test_values_and_gradients("compiled_fft", level)
    with native.at_level(level):  # several examples share a part's kernel gradient
        test_every_size_of_transform("compiled_fft", 784, batch=19)
    test_the_same_bytes_on_one_and_two_threads_and_from_scattered_memory("compiled_fft")
    test_rows_do_not_meet("compiled_fft")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [784, 1024, 2500, 5000])
def test_every_size_of_transform(form, length, batch=2):
    u, kernel, weight = problem(batch, length, 3)
    double = [v.double() for v in (u, kernel, weight)]
    expected = outcome(*double, lambda a, b: causal_convolution(a, b, form="fft"))
    found = outcome(u, kernel, weight, lambda a, b: causal_convolution(a, b, form=form))
    near(found, expected, 5 * tolerances.CONVOLUTION[form])


def test_the_longest_sequence_and_what_is_too_long():
    u, kernel, weight = problem(1, cpu_convolution.LONGEST, 1)
    double = [v.double() for v in (u, kernel, weight)]
    expected = outcome(*double, lambda a, b: causal_convolution(a, b, form="fft"))
    found = outcome(u, kernel, weight, lambda a, b: causal_convolution(a, b))
    near(found, expected, 1e-5)
    u, kernel, _ = problem(1, cpu_convolution.LONGEST + 1, 1)
    with pytest.raises(ValueError, match="length <= 65536; got 65537"):
        causal_convolution(u, kernel, form="compiled_fft")
    assert causal_convolution(u, kernel).shape == u.shape  # by torch's FFT


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_on_one_and_two_threads_and_from_scattered_memory(form):
    u, kernel, weight = problem(11, 200, 37)
    scattered = u.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    outcomes = []
    for threads, x in ((1, u), (2, u), (3, scattered)):
        with cpu_threads(threads):
            outcomes.append(
                outcome(x, kernel, weight, lambda a, b: causal_convolution(a, b, form=form))
            )
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_meet(form):
    u, kernel, weight = problem(5, 170, 20)
    whole = outcome(u, kernel, weight, lambda a, b: causal_convolution(a, b, form=form))
    alone = outcome(u[3:4], kernel, weight[3:4], lambda a, b: causal_convolution(a, b, form=form))
    assert torch.equal(alone[0][0], whole[0][3]) and torch.equal(alone[1][0], whole[1][3])


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_without_gradient_costs_none_and_alone_it_gets_the_same(form, monkeypatch):
    u, kernel, weight = problem(3, 40, 5)
    _, du, dk = outcome(u, kernel, weight, lambda a, b: causal_convolution(a, b, form=form))
    alone = kernel.clone().requires_grad_()
    y = causal_convolution(u, alone, form=form)
    assert torch.equal(torch.autograd.grad((y * weight).sum(), alone)[0], dk)
    for name in ("_direct_lags", "_fft_gradients"):
        monkeypatch.setattr(cpu_convolution, name, None)
    u.requires_grad_()
    y = causal_convolution(u, kernel, form=form)
    near([torch.autograd.grad((y * weight).sum(), u)[0]], [du.double()], 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(form):
    u, kernel, weight = problem(2, 9, 3)
    seconds = []
    for dtype, chosen in ((torch.float32, form), (torch.float64, "fft")):
        a, b = (v.to(dtype).requires_grad_() for v in (u, kernel))
        y = causal_convolution(a, b, form=chosen)
        first = torch.autograd.grad((y * y * weight.to(dtype)).sum(), (a, b), create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), (a, b)))
    near(*seconds, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_do_not_vanish(form):
    for bad in (torch.nan, torch.inf):
        u, kernel, _ = problem(2, 20, 3)
        u[0, 4, 1] = bad
        y = causal_convolution(u, kernel, form=form)
        assert not y[0, 4:, 1].isfinite().any()
        assert y[1].isfinite().all() and y[0, :, [0, 2]].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch(form):
    u, kernel, weight = problem(0, 20, 3)
    y, du, dk = outcome(u, kernel, weight, lambda a, b: causal_convolution(a, b, form=form))
    assert y.shape == du.shape == u.shape and torch.equal(dk, torch.zeros(3, 20))


def test_other_dtypes_and_no_library_are_refused_by_name_and_served_without_one():
    u, kernel, _ = problem(2, 20, 3)
    with pytest.raises(ValueError, match=r"float32 kernel on the CPU; got torch\.float64"):
        causal_convolution(u.double(), kernel.double(), form="compiled_fft")
    expected = causal_convolution(u, kernel)
    with native.without():
        torch.testing.assert_close(causal_convolution(u, kernel), expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="Leave form out"):
            causal_convolution(u, kernel, form="compiled_direct")
