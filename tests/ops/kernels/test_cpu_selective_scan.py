"""The compiled selective scan against the loop that defines it, in float64."""

import pytest
import torch

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.ops.kernels import cpu_selective_scan, native
from robustssm.ops.selective_scan import selective_scan, selective_scan_reference

F64 = torch.float64
LEVELS = ["x86_64_v4", "x86_64_v3", "generic"]
NAMES = ("y", "u", "delta", "A", "B", "C", "D", "bias", "gate")
SHAPES = [  # batch, time, channels, state
    *((1, 1, 1, 1), (2, 31, 7, 3), (1, 32, 16, 16), (2, 33, 17, 4), (1, 100, 64, 8)),
    *((1, 5, 200, 33), (3, 64, 65, 1)),
]
TOLERANCE = 2e-6
"""Of the largest entry. Measured over all tests here and three levels: 8.1e-7."""

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def problem(batch, time, channels, state, *, fused, seed=0):
    """Inputs in float32: of six, or with bias and gate of eight; and what comes back."""
    noise = Noise(seed + time)
    u, x, v = (noise.normal(batch, time, channels) for _ in range(3))
    A = -(1 + torch.arange(float(state))) * noise.uniform(channels, 1, low=0.5)
    B, C = (noise.normal(batch, time, state) for _ in range(2))
    D, bias = noise.normal(channels), noise.normal(channels)
    if fused:
        return [u, x - 2, A, B, C, D, bias, noise.normal(batch, time, channels)], v
    return [u, torch.nn.functional.softplus(x - 2), A, B, C, D], v


def outcome(scan, inputs, v, how, wanted=None):
    """y and the gradients of the inputs, or of those wanted."""
    inputs = [x.detach() for x in inputs]
    chosen = [inputs[k].requires_grad_() for k in wanted or range(len(inputs))]
    six, (bias, gate) = inputs[:6], [*inputs[6:], None, None][:2]
    y = scan(*six, bias=bias, gate=gate, discretization=how)
    return y.detach(), *torch.autograd.grad(y, chosen, v)


def near(found, expected):
    for name, got, want in zip(NAMES, found, expected, strict=False):
        error = (got.double() - want).abs().max()
        assert error <= TOLERANCE * want.abs().max(), name


@pytest.fixture(params=LEVELS)
def level(request):
    if request.param not in (
        *native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()),
        "generic",
    ):
        pytest.skip("not for this processor")
    with native.at_level(request.param):
        yield request.param


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_values_and_all_gradients(how, level):
    for k, shape in enumerate(SHAPES):
        inputs, v = problem(*shape, fused=k % 2 == 0)
        expected = outcome(selective_scan_reference, [x.double() for x in inputs], v.double(), how)
        near(outcome(selective_scan, inputs, v, how), expected)


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_one_thread_or_three_and_scattered_memory_give_the_same_bytes(how):
    inputs, v = problem(3, 70, 150, 5, fused=True)
    wide = torch.cat([inputs[3], inputs[4], inputs[7]], -1)  # as Mamba cuts them out
    cut = [*inputs[:3], *wide[..., :10].chunk(2, -1), *inputs[5:7], wide[..., 10:]]
    turned = [x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs]
    outcomes = []
    for threads, given in ((1, inputs), (3, inputs), (2, cut), (1, turned)):
        with cpu_threads(threads):
            outcomes.append(outcome(selective_scan, given, v, how))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_rows_do_not_meet():
    inputs, v = problem(5, 40, 130, 4, fused=True)
    alone = [x[3:4] if x.ndim == 3 else x for x in inputs]
    whole = outcome(selective_scan, inputs, v, "euler", wanted=(0, 1, 3, 4, 7))
    single = outcome(selective_scan, alone, v[3:4], "euler", wanted=(0, 1, 3, 4, 7))
    assert all(torch.equal(a[3], b[0]) for a, b in zip(whole, single, strict=True))


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_gradients_of_some_inputs_are_those_of_all(how):
    inputs, v = problem(2, 40, 20, 6, fused=True)
    everything = outcome(selective_scan, inputs, v, how)
    for wanted in ((0, 1, 3, 4, 7), (5,), (2, 6), (7,)):
        found = outcome(selective_scan, inputs, v, how, wanted)
        for k, got in zip(wanted, found[1:], strict=True):
            assert torch.equal(got, everything[k + 1])


def test_parameters_without_gradient_cost_none(monkeypatch):
    seen = []
    scan_back = cpu_selective_scan._scan_back
    monkeypatch.setattr(
        cpu_selective_scan, "_scan_back", lambda *x: seen.append(x) or scan_back(*x)
    )
    inputs, v = problem(2, 40, 20, 6, fused=True)
    outcome(selective_scan, inputs, v, "euler", wanted=(0, 1, 3, 4, 7))
    assert seen[0][15:18] == (None, None, None)  # dA, dD and that of the bias


@pytest.mark.parametrize("how", ["euler", "zoh"])
def test_extreme_steps(how, level):
    inputs, v = problem(1, 6, 3, 4, fused=False)
    steps = torch.tensor([0.0, 1e-12, 1e4, 1e-3, 3e38 if how == "zoh" else 1e9, 50.0])
    inputs[1] = steps[None, :, None].expand(1, 6, 3)
    expected = outcome(selective_scan_reference, [x.double() for x in inputs], v.double(), how)
    near(outcome(selective_scan, inputs, v, how), expected)


def test_a_singular_state_matrix_held(level):
    inputs, v = problem(2, 40, 3, 6, fused=False)
    inputs[2][0] = torch.tensor([0.0, -1e-30, -1e-12, 1e-6, -0.3, -0.7])
    doubles = [x.double() for x in inputs]
    with native.without():  # its slope in A is by a series where the loop's cancels
        expected = outcome(selective_scan, doubles, v.double(), "zoh")
    near(outcome(selective_scan, inputs, v, "zoh"), expected)


def test_unstable_states_overflow_to_infinity(level):
    inputs, _ = problem(1, 20, 2, 1, fused=False)
    inputs[1][:] = 1.0
    inputs[2][:] = torch.tensor([[30.0], [-1.0]])
    y = selective_scan(*inputs)
    assert not y[0, 10:, 0].isfinite().any() and y[..., 1].isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("k", [0, 1, 3, 4, 7])
def test_nan_and_infinity_do_not_vanish(k, bad, level):
    inputs, _ = problem(2, 40, 20, 3, fused=True)
    inputs[k][0, 33, 2] = bad
    y = selective_scan(*inputs[:6], bias=inputs[6], gate=inputs[7])
    assert not y[0, 33, 2].isfinite() or (k == 1 and bad == torch.inf)
    assert y[0, :33].isfinite().all() and y[1].isfinite().all()
    if k in (0, 1, 7):
        others = torch.arange(20) != 2
        assert y[0][:, others].isfinite().all()


def test_gradients_of_gradients_take_the_way_of_torch():
    seconds = []
    inputs, v = problem(2, 7, 3, 2, fused=True)
    for dtype in (torch.float32, F64):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        y = selective_scan(*given[:6], bias=given[6], gate=given[7])
        first = torch.autograd.grad(y, given, v.to(dtype), create_graph=True)
        seconds.append(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), given)
        )
    for got, want in zip(*seconds, strict=True):
        assert (got - want).abs().max() < 2e-5 * want.abs().max()


def test_memory_for_backward_is_a_fraction_of_the_states():
    inputs, _ = problem(2, 1024, 64, 16, fused=False)
    kept = {}
    keep = lambda x: kept.setdefault(x.data_ptr(), x.numel())  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        selective_scan(*(x.requires_grad_() for x in inputs))
    given = {x.data_ptr() for x in inputs}
    states = 2 * 1024 * 64 * 16
    assert sum(size for at, size in kept.items() if at not in given) < states / 32
    with torch.no_grad():  # and nothing at all where no gradient is wanted
        seen = []
        _record(seen, lambda: selective_scan(*inputs))
        assert seen == [None]


def _record(seen, call):
    scan = cpu_selective_scan._scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_selective_scan, "_scan", lambda *x: seen.append(x[9]) or scan(*x))
        call()
