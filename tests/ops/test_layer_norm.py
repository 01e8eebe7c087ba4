"""Compiled layer norm against torch's in float64, and when it is chosen."""

import pytest
import torch
import torch.nn.functional as F

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.kernels import cpu_layer_norm, native
from robustssm.ops.layer_norm import layer_norm

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")

LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
TOLERANCE = 6e-7
"""Relative to the largest entry. Measured 2.6e-7."""

SIZES = [(1, 16), (3, 5, 32), (84, 64, 32), (4, 130, 128), (65, 48), (2, 3, 41, 64)]
LARGE = (9, 64, 32)  # the choice falls on the compiled form


def draw(*shape, offset=0.0):
    noise = Noise(shape[-1])
    x = noise.fork("x").normal(*shape) * 3 + offset
    weight = 1 + 0.5 * noise.fork("w").normal(shape[-1])
    return x, weight, noise.fork("b").normal(shape[-1]), noise.fork("g").normal(*shape)


def compiled(x, weight, bias):
    return cpu_layer_norm.LayerNorm.apply(x, weight, bias, 1e-5)


def plain(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def outcome(run, x, weight, bias, g, wanted=(0, 1, 2)):
    inputs = [t.detach().requires_grad_(k in wanted) for k, t in enumerate((x, weight, bias))]
    y = run(*inputs)
    chosen = [t for t in inputs if t.requires_grad]
    return y.detach(), *torch.autograd.grad(y, chosen, g)


def double(*tensors):
    return [t.double() for t in tensors]


def near(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= TOLERANCE * other.abs().max()


def is_compiled(y):
    return y.grad_fn.name() == "LayerNormBackward"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SIZES)
def test_values_and_gradients(shape, level):
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    given = draw(*shape)
    with native.at_level(level):
        found = outcome(compiled, *given)
    near(found, outcome(plain, *double(*given)))


def test_the_choice_makes_no_difference_but_rounding():
    given = draw(*LARGE)
    near(outcome(layer_norm, *given), outcome(plain, *double(*given)))
    with native.without():  # torch's own sums
        found, expected = outcome(layer_norm, *given), outcome(plain, *double(*given))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= 2e-6 * other.abs().max()


def test_what_is_compiled():
    if LARGE[-1] % native.vector_width():
        pytest.skip("not whole vectors")
    x, weight, bias, _ = draw(*LARGE)
    weight.requires_grad_()
    assert is_compiled(layer_norm(x, weight, bias))
    assert not is_compiled(layer_norm(x[:1, :9], weight, bias)), "too small"
    assert not is_compiled(layer_norm(x, weight, None))
    assert not is_compiled(layer_norm(x.double(), weight.double(), bias.double()))
    assert not is_compiled(layer_norm(x[..., :31], weight[:31], bias[:31])), "no whole vectors"
    with native.without():
        assert not is_compiled(layer_norm(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_compiled(layer_norm(x, weight, bias))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_only_what_is_wanted(wanted):
    given = draw(*LARGE)
    found = outcome(compiled, *given, wanted=wanted)
    near(found, outcome(plain, *double(*given), wanted=wanted))


@pytest.mark.parametrize("kind", ["mean", "last", "transposed", "sliced"])
def test_gradients_that_lie_anyhow_in_memory(kind):
    """The gradient of a mean is one row for all tokens, which is read without a copy."""
    x, weight, bias, g = draw(*LARGE)

    def read(y):
        if kind == "mean":
            return (y.sum(1) * g[:, 0].to(y.dtype)).sum()
        if kind == "last":
            return (y[:, -1] * g[:, 0].to(y.dtype)).sum()
        if kind == "transposed":
            return (y.transpose(1, 2) * g.transpose(1, 2).contiguous().to(y.dtype)).sum()
        return (torch.cat((y, y), -1)[..., 16:48] * g.to(y.dtype)).sum()

    def gradients(run, *inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(read(run(*inputs)), inputs)

    near(gradients(compiled, x, weight, bias), gradients(plain, *double(x, weight, bias)))


def test_inputs_that_are_not_contiguous():
    x, weight, bias, g = draw(32, 64, 9)[0].transpose(0, 2), *draw(*LARGE)[1:]
    near(outcome(compiled, x, weight, bias, g), outcome(plain, *double(x, weight, bias, g)))


def test_the_same_bytes_on_one_two_and_three_threads():
    given, outcomes = draw(9, 101, 48), []
    for threads in (1, 2, 3):
        with cpu_threads(threads):
            outcomes.append(outcome(compiled, *given))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_a_row_depends_on_itself_alone():
    x, weight, bias, _ = draw(101, 32)
    whole = compiled(x, weight, bias)
    for some in (slice(5, 6), slice(40, 101), slice(0, 7)):
        assert torch.equal(compiled(x[some], weight, bias), whole[some])
    x[50, 3] = torch.nan
    spoilt = compiled(x, weight, bias)
    assert spoilt[50].isnan().all()
    assert torch.equal(spoilt[51:], whole[51:]) and torch.equal(spoilt[:50], whole[:50])


def test_rows_far_from_zero_and_rows_without_variance():
    given = draw(64, 32, offset=1e3)
    found, expected = outcome(compiled, *given), outcome(plain, *double(*given))
    assert (found[0].double() - expected[0]).abs().max() < 1e-3, "1e3 in float32 has steps of 6e-5"
    _, weight, bias, g = given
    y, dx, *_ = outcome(compiled, torch.full((64, 32), 2.5), weight, bias, g)
    assert torch.equal(y, bias.expand(64, 32)) and dx.isfinite().all()


def test_second_derivatives():
    x, weight, bias, g = draw(7, 64, 32)
    assert is_compiled(layer_norm(x.requires_grad_(), weight, bias))

    def penalty(run, x, weight, bias, g):
        x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
        (dx,) = torch.autograd.grad((run(x, weight, bias).tanh() * g).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, weight, bias))

    found = penalty(layer_norm, x, weight, bias, g)
    expected = penalty(plain, *double(x, weight, bias, g))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max()
