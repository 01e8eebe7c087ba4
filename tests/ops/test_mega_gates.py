"""Mega's compiled gates against torch's in float64, and when they are chosen."""

import pytest
import torch
import torch.nn.functional as F

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise, global_stream
from robustssm.ops import mega_gates
from robustssm.ops.kernels import cpu_mega_gates, native
from robustssm.ops.mega_gates import gates, reset, silu, update

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")

LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
TOLERANCE = 1e-6
"""Relative to the largest entry. Measured 3.8e-7."""

SIZES = [
    ((3, 5), (1, 1, 1, 1)),
    ((2, 7), (5, 3, 9, 5)),
    ((2, 65), (32, 16, 64, 32)),
    ((3, 43), (17, 31, 40, 17)),
    ((130,), (16, 8, 20, 16)),
]
LARGE = ((4, 100), (33, 12, 65, 33))  # the choice falls on the compiled form
NAMES = ("m", "gain", "offset", "read", "x", "hidden")


@pytest.fixture
def any_size(monkeypatch):
    """The compiled form of small tensors, too."""
    monkeypatch.setattr(mega_gates, "_LEAST_ENTRIES", 0)


def draw(rows, widths, *, std=1.5):
    d_model, d_attention, d_hidden, _ = widths
    noise, sizes = Noise(d_model), (sum(widths), None, None, d_hidden, d_model, d_model)
    return [
        noise.fork(name).normal(*((2, d_attention) if size is None else (*rows, size)), std=std)
        for name, size in zip(NAMES, sizes, strict=True)
    ]


def chain(m, gain, offset, read, x, hidden, widths, *, compiled=True):
    """All results; the attention's place is taken by a product."""
    made = gates(m, gain, offset, widths)
    if compiled:
        assert made.room is not None
    return made.q, made.k, reset(read, made), update(x, hidden, made), silu(m)


def expected(m, gain, offset, read, x, hidden, widths):
    """Formulas of the paper, in the dtype given."""
    u, z, r, h_x = m.split(widths, -1)
    z = z * torch.sigmoid(z)
    candidate = F.silu(h_x + hidden)
    return (
        z * gain[0] + offset[0],
        z * gain[1] + offset[1],
        read * F.silu(r),
        torch.sigmoid(u) * candidate + (1 - torch.sigmoid(u)) * x,
        m * torch.sigmoid(m),
    )


def outcome(run, given, widths, wanted=NAMES, chosen=None):
    """Results, and gradients of the inputs that are wanted, of all results or of those chosen."""
    inputs = [t.detach().requires_grad_(n in wanted) for n, t in zip(NAMES, given, strict=True)]
    results = run(*inputs, widths)
    slopes = [Noise(9).fork(str(k)).normal(*y.shape).to(y) for k, y in enumerate(results)]
    chosen = [k for k, y in enumerate(results) if y.requires_grad and k in (chosen or range(5))]
    found = torch.autograd.grad(
        [results[k] for k in chosen],
        [t for t in inputs if t.requires_grad],
        [slopes[k] for k in chosen],
        allow_unused=True,
        materialize_grads=True,
    )
    return [*(y.detach() for y in results), *found]


def double(tensors):
    return [t.double() for t in tensors]


def near(found, expected, tolerance=TOLERANCE):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def same(found, others):
    assert all(torch.equal(a, b) for a, b in zip(found, others, strict=True))


def here(level):
    """Skips where the processor cannot run it."""
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    return native.at_level(level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows, widths", SIZES)
def test_values_and_gradients(rows, widths, level, any_size):
    given = draw(rows, widths)
    with here(level):
        found = outcome(chain, given, widths)
    near(found, outcome(expected, double(given), widths))


@pytest.mark.parametrize(
    "wanted", [("m",), ("gain",), ("offset",), ("read", "x"), ("m", "x"), ("hidden",)]
)
def test_only_what_is_wanted(wanted, monkeypatch):
    given, (_, widths) = draw(*LARGE), LARGE
    sums, run = [], cpu_mega_gates._qk_gradients
    monkeypatch.setattr(
        cpu_mega_gates, "_qk_gradients", lambda *given: sums.append(given[5]) or run(*given)
    )
    found = outcome(chain, given, widths, wanted)
    near(found, outcome(expected, double(given), widths, wanted))
    if wanted[0] in ("m", "gain", "offset"):
        assert [part is None for part in sums] == [wanted[0] == "m"], "none for a frozen layer"


@pytest.mark.parametrize("chosen", [(0,), (1, 3), (2,), (3,), (2, 3), (0, 1, 2, 3)])
def test_results_that_are_not_used_owe_nothing(chosen):
    given, (_, widths) = draw(*LARGE), LARGE
    found = outcome(chain, given, widths, chosen=chosen)
    near(found, outcome(expected, double(given), widths, chosen=chosen))


def test_parts_that_are_used_twice():
    given, (_, widths) = draw(*LARGE), LARGE

    def twice(m, gain, offset, read, x, hidden, widths):
        made = gates(m, gain, offset, widths)
        again = reset(reset(read, made), made)
        return update(update(x, hidden, made), hidden, made), again * made.r, made.u * made.h_x

    def plain(*given):
        with native.without():
            return twice(*given)

    near(outcome(twice, given, widths), outcome(plain, double(given), widths))


def test_gradients_stay_what_they_were_in_later_passes():
    """A matrix that a pass has begun to fill, and whose parts somebody has, is not taken again."""
    (m, gain, offset, read, x, hidden), (_, widths) = draw(*LARGE), LARGE
    m.requires_grad_()
    made = gates(m, gain, offset, widths)
    read, x = reset(read, made), update(x, hidden, made)
    part = torch.autograd.grad([read, x], [made.u, made.r, made.h_x], [read, x], retain_graph=True)
    before = [t.clone() for t in part]
    (of_read,) = torch.autograd.grad(read, m, 2 * read, retain_graph=True)
    kept = of_read.clone()
    (of_x,) = torch.autograd.grad(x, m, x, retain_graph=True)
    (of_both,) = torch.autograd.grad([read, x], m, [read, x], retain_graph=True)
    same((*part, of_read), (*before, kept))
    assert torch.equal(of_both, of_read / 2 + of_x)
    u, z, r, h_x = of_both.split(widths, -1)
    same((u, r, h_x), before)
    assert not z.any()


@pytest.mark.parametrize("level", LEVELS)
def test_large_values(level, any_size):
    sizes = torch.tensor([0, 1e-30, 1, 20, 60, 87, 88, 89, 100, 1e3, 1e4])
    x = torch.cat([sizes, -sizes])[:, None].expand(-1, 22).contiguous()
    given = [torch.cat([x] * 4, -1), *[torch.ones(2, 22)] * 2, x.mT.contiguous(), x.mT, x * 0.5]
    with here(level):
        found = outcome(chain, given, [22] * 4)
    exact = outcome(expected, double(given), [22] * 4)
    for one, other in zip(found, exact, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=1e-6 * 1e4)
    near(found[4:5], exact[4:5])
    slope = torch.autograd.functional.jacobian(
        lambda x: silu(x).sum(0), x[:, :1].clone()
    ).diagonal()
    assert slope.abs().max() < 1.1


def test_nan_stays_in_its_places(any_size):
    given, (_, widths) = draw(*LARGE), LARGE
    given[0][1, 2, :] = torch.nan
    found = outcome(chain, given, widths, wanted=("m", "x"))
    for y in found:
        assert y[1, 2].isnan().all()
        assert not torch.cat([y[:1], y[2:]]).isnan().any() and not y[1, :2].isnan().any()


def test_the_same_bytes_on_one_two_and_three_threads():
    given, outcomes = draw(*LARGE), []
    for threads in (1, 1, 2, 3):
        with cpu_threads(threads):
            outcomes.append(outcome(chain, given, LARGE[1]))
    for other in outcomes[1:]:
        same(outcomes[0], other)


def test_a_row_depends_on_itself_alone(any_size):
    given, (_, widths) = draw(*LARGE), LARGE

    def run(part):
        m, gain, offset, *others = given
        read, x, hidden = (t[part] for t in others)
        return chain(m[part], gain, offset, read, x, hidden, widths)

    whole = run(slice(None))
    for some in (slice(2, 3), slice(1, 4)):
        same(run(some), [y[some] for y in whole])


@pytest.mark.parametrize("level", LEVELS)
def test_scattered_memory(level, any_size):
    (m, gain, offset, *others), (_, widths) = draw(*LARGE), LARGE

    def columns(t):
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 9), torch.nan)
        wide[..., 4:-5] = t
        return wide[..., 4:-5]

    def turned(t):
        return t.transpose(0, 1).contiguous().transpose(0, 1)

    def spread(t):
        return t.mT.contiguous().mT

    exact = outcome(expected, double([m, gain, offset, *others]), widths)
    for lay in (columns, turned, spread):
        given = [lay(m), spread(gain), spread(offset), *map(lay, others)]
        with here(level):
            near(outcome(chain, given, widths), exact)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_of_any_layout(level, any_size):
    (m, gain, offset, read, x, hidden), (_, widths) = draw(*LARGE), LARGE

    def sums(run, *given):
        given = [t.detach().requires_grad_() for t in given]
        results = run(*given, widths)
        return torch.autograd.grad(torch.stack([y.sum() for y in results]).sum(), given)

    with here(level):
        found = sums(chain, m, gain, offset, read, x, hidden)
    near(found, sums(expected, *double([m, gain, offset, read, x, hidden])))


def test_second_derivatives():
    given, (_, widths) = draw(*LARGE), LARGE

    def slopes(run, *given):
        given = [t.detach().requires_grad_() for t in given]
        results = run(*given, widths)
        loss = torch.stack([y.sin().sum() for y in results]).sum()
        first = torch.autograd.grad(loss, given, create_graph=True)
        return torch.autograd.grad(torch.stack([t.square().sum() for t in first]).sum(), given)

    near(slopes(chain, *given), slopes(expected, *double(given)), 4e-6)


def test_second_derivatives_of_the_torch_form():
    given = [t.double().requires_grad_() for t in draw((2, 2), (2, 1, 3, 2))]

    def run(*given):
        m, gain, offset, read, x, hidden = given
        return chain(m, gain, offset, read, x, hidden, (2, 1, 3, 2), compiled=False)

    with global_stream(Noise(98)):  # the check draws its directions globally
        assert torch.autograd.gradcheck(run, given)
        assert torch.autograd.gradgradcheck(run, given)


def test_what_is_compiled():
    (m, gain, offset, read, x, hidden), (_, widths) = draw(*LARGE), LARGE
    m.requires_grad_()

    def names(**changed):
        given = {"m": m, "read": read, "x": x, "hidden": hidden, **changed}
        made = gates(given["m"], gain.to(given["m"]), offset.to(given["m"]), widths)
        results = (
            made.q,
            reset(given["read"], made),
            update(given["x"], given["hidden"], made),
            silu(given["m"]),
        )
        return ["" if y.grad_fn is None else y.grad_fn.name() for y in results]

    compiled = ["GatesBackward", "ResetBackward", "UpdateBackward", "SiluBackward"]
    plain = ["AddcmulBackward0", "MulBackward0", "AddBackward0", "SiluBackward0"]
    assert names() == compiled
    with native.without():
        assert names() == plain
    with torch.autocast("cpu", torch.bfloat16):
        assert names() == plain
    assert names(m=m[:, :1], read=read[:, :1], x=x[:, :1], hidden=hidden[:, :1]) == plain, "small"
    assert (
        names(**dict(zip(("m", "read", "x", "hidden"), double([m, read, x, hidden]), strict=True)))
        == plain
    )
    assert names(m=m.mT.contiguous().mT)[3] == "SiluBackward0", "not contiguous"


@pytest.mark.parametrize("rows", [(0,), (0, 4), (4, 0)])
def test_no_rows(rows, any_size):
    given = draw(rows, (5, 3, 9, 5))
    found = outcome(chain, given, (5, 3, 9, 5))
    for one, other in zip(found[5:], given, strict=True):
        assert one.shape == other.shape and not one.any()
