"""Compiled linear maps against torch's in float64, and when they are chosen."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.dense import dense
from robustssm.ops.kernels import cpu_dense, native

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")

LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
TOLERANCE = 4e-6
"""Relative to the largest entry. Measured 1.8e-6: here, and for sums of 25,000 products."""

SIZES = [
    ((1, 1), 1, 1),
    ((2, 3), 5, 7),
    ((97,), 16, 64),
    ((3, 33), 17, 65),
    ((2, 2, 50), 130, 48),
    ((5, 200), 64, 10),
    ((1100,), 300, 77),
    ((9, 1000), 31, 33),
]
LARGE = ((4, 250), 40, 72)  # the choice falls on the compiled form


def draw(rows, inputs, outputs, *, bias=True):
    noise = Noise(inputs)
    x, weight = noise.fork("x").normal(*rows, inputs), noise.fork("w").normal(outputs, inputs)
    b = noise.fork("b").normal(outputs) if bias else None
    return x, weight, b, noise.fork("g").normal(*rows, outputs)


def compiled(x, weight, bias):
    return cpu_dense.Dense.apply(x, weight, bias)


def outcome(run, x, weight, bias, g, wanted=(0, 1, 2)):
    """y and the gradients of the inputs that are wanted and there."""
    inputs = [
        None if t is None else t.detach().requires_grad_(k in wanted)
        for k, t in enumerate((x, weight, bias))
    ]
    y = run(*inputs)
    chosen = [t for t in inputs if t is not None and t.requires_grad]
    return y.detach(), *torch.autograd.grad(y, chosen, g)


def double(*tensors):
    return [t if t is None else t.double() for t in tensors]


def near(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= TOLERANCE * other.abs().max()


def here(level):
    """Skips where the processor cannot run it."""
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    return native.at_level(level)


def is_compiled(y):
    return y.grad_fn.name() == "DenseBackward"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
def test_values_and_gradients(rows, inputs, outputs, bias, level):
    given = draw(rows, inputs, outputs, bias=bias)
    with here(level):
        found = outcome(compiled, *given)
    near(found, outcome(F.linear, *double(*given)))


def test_the_choice_makes_no_difference_but_rounding():
    given = draw(*LARGE)
    near(outcome(dense, *given), outcome(F.linear, *double(*given)))
    with native.without():
        plain = outcome(dense, *given)
    near(plain, outcome(F.linear, *double(*given)))


def test_what_is_compiled():
    if native.vector_width() < 8:
        pytest.skip("torch is the faster one")
    x, weight, bias, _ = draw(*LARGE)
    assert bias is not None
    weight.requires_grad_()
    assert is_compiled(dense(x, weight, bias)) and is_compiled(dense(x, weight))
    assert not is_compiled(dense(x[:, :20], weight, bias)), "too small"
    assert not is_compiled(dense(x.double(), weight.double(), bias.double()))
    with native.without():
        assert not is_compiled(dense(x, weight, bias))
    with native.at_level("generic"):
        assert not is_compiled(dense(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        y = dense(x, weight, bias)
    assert not is_compiled(y) and y.dtype == torch.bfloat16
    few, wide = Noise(0).normal(16, 300), Noise(1).normal(300, 300).requires_grad_()
    assert not is_compiled(dense(few, wide)), "so few rows"
    column = Noise(0).normal(30_000, 1)
    assert not is_compiled(dense(column, Noise(1).normal(64, 1).requires_grad_()))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_only_what_is_wanted(wanted, monkeypatch):
    given = draw(*LARGE)
    expected = outcome(F.linear, *double(*given), wanted=wanted)
    products = []
    for name in ("_dense", "_gradients"):
        run = getattr(cpu_dense, name)

        def counted(*arguments, name=name, run=run):
            products.append(name)
            run(*arguments)

        monkeypatch.setattr(cpu_dense, name, counted)
    near(outcome(compiled, *given, wanted=wanted), expected)
    assert products.count("_dense") == 1 + (0 in wanted)
    assert products.count("_gradients") == (1 in wanted)


@pytest.mark.parametrize("rows, inputs, outputs", [((9, 1000), 31, 33), ((3, 33), 17, 65)])
def test_the_same_bytes_on_one_two_and_three_threads(rows, inputs, outputs):
    given, outcomes = draw(rows, inputs, outputs), []
    for threads in (1, 2, 3):
        with cpu_threads(threads):
            outcomes.append(outcome(compiled, *given))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_a_row_depends_on_itself_alone():
    x, weight, bias, _ = draw((101,), 37, 19)
    whole = compiled(x, weight, bias)
    for some in (slice(5, 6), slice(40, 101), slice(0, 7)):
        assert torch.equal(compiled(x[some], weight, bias), whole[some])
    x[50, 3] = torch.nan
    spoilt = compiled(x, weight, bias)
    assert spoilt[50].isnan().all() and not spoilt[:50].isnan().any()


def test_nan_stays_in_its_places_on_the_way_back():
    x, weight, bias, g = draw((600,), 20, 24)
    g[7, 5] = torch.nan
    _, dx, dw, db = outcome(compiled, x, weight, bias, g)
    assert dx[7].isnan().all() and dx.isnan().sum() == 20
    assert dw[5].isnan().all() and dw.isnan().sum() == 20
    assert db.isnan().nonzero().tolist() == [[5]]


@pytest.mark.parametrize("level", LEVELS)
def test_scattered_memory(level):
    x, weight, bias, g = draw((4, 30), 21, 35)
    wide = torch.full((4, 30, 64), torch.nan)
    wide[..., 9:30] = x
    columns = torch.full((4, 30, 50), torch.nan)
    columns[..., 3:38] = g
    expected = outcome(F.linear, *double(x, weight, bias, g))
    spread = torch.full((35, 2, 42), torch.nan)
    spread[:, 0, ::2] = weight
    with here(level):
        for rows in (
            wide[..., 9:30],
            x.transpose(0, 1).contiguous().transpose(0, 1),
            x.mT.clone().mT,
        ):
            for matrix in (weight, weight.T.clone().T, spread[:, 0, ::2]):
                for slope in (g, columns[..., 3:38]):
                    near(outcome(compiled, rows, matrix, bias, slope), expected)
        ones = torch.ones(()).expand(4, 30, 35)
        near(
            outcome(compiled, x, weight[:1].expand(35, 21), bias, ones),
            outcome(F.linear, *double(x, weight[:1].expand(35, 21), bias, ones)),
        )


def test_second_derivatives():
    *given, g = draw((3, 33), 17, 12)

    def slopes(run, inputs, g):
        inputs = [t.requires_grad_() for t in inputs]
        g.requires_grad_()
        first = torch.autograd.grad(run(*inputs), inputs, g, create_graph=True)
        return torch.autograd.grad(
            torch.stack([t.square().sum() for t in first]).sum(), [*inputs[:2], g]
        )

    near(slopes(compiled, given, g), slopes(F.linear, double(*given), g.detach().double()))


@pytest.mark.parametrize("run", [dense, compiled])
def test_no_rows(run):
    x, weight, bias, g = draw((0, 5), 12, 20)
    y, dx, dw, db = outcome(run, x, weight, bias, g)
    assert y.shape == (0, 5, 20) and dx.shape == x.shape
    assert not dw.any() and not db.any()


def test_keeps_its_inputs_and_nothing_else():
    given = [t for t in draw(*LARGE)[:3] if t is not None]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
        compiled(*(t.requires_grad_() for t in given))
    assert set(kept) == {t.data_ptr() for t in given}


def test_what_does_not_fit_is_refused_by_torch():
    x, weight, bias, _ = draw((2000,), 40, 72)
    assert bias is not None
    plain = inspect.unwrap(dense)  # without the checks of shapes that only tests make
    for wrong in [(x[:, :39], weight, bias), (x, weight, bias[:70]), (x, weight[0, 0], None)]:
        with pytest.raises(RuntimeError):
            plain(*wrong)
