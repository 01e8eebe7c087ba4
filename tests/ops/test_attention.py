"""Attention against one query at a time, and against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F

from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise, global_stream
from robustssm.ops import attention
from robustssm.ops.attention import softmax_attention, softmax_attention_reference
from robustssm.ops.kernels import native

F64 = torch.float64

LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
COMPILED = 4e-6
"""Relative to the largest entry, in float32. Measured 1.4e-6 over these tests."""

compiled = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")


def inputs_of(batch, heads, queries, keys, *, biased=1, features=3, values=5):
    noise = Noise(queries)
    q = noise.normal(batch, heads, queries, features, dtype=F64)
    k = noise.normal(batch, heads, keys, features, dtype=F64)
    v = noise.normal(batch, heads, keys, values, dtype=F64)
    bias = [noise.normal(biased, queries, keys, dtype=F64)] if biased else []
    return [x.requires_grad_() for x in (q, k, v, *bias)]


@pytest.mark.parametrize("chunk", [1, 40, 2**18])
@pytest.mark.parametrize("biased", [0, 1, 2])
@pytest.mark.parametrize("batch, queries, keys", [(1, 1, 1), (5, 4, 7), (2, 9, 3)])
def test_values_and_gradients(batch, queries, keys, biased, chunk, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_ELEMENTS", chunk)
    inputs = inputs_of(batch, 2, queries, keys, biased=biased)
    y, expected = softmax_attention(*inputs), softmax_attention_reference(*inputs)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)
    mask = inputs[3] if biased else None
    torchs_own = F.scaled_dot_product_attention(*inputs[:3], attn_mask=mask)
    torch.testing.assert_close(y, torchs_own, rtol=1e-9, atol=1e-12)
    g = Noise(1).normal(like=y)
    for got, want in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_forbidden_keys_and_large_scores():
    q, k, v, bias = inputs_of(2, 1, 6, 6)
    mask = torch.full((6, 6), -torch.inf, dtype=F64).triu(1)
    scaled = [1000 * q.detach(), k.detach(), v.detach().requires_grad_(), bias.detach() + mask]
    y = softmax_attention(*scaled)
    torch.testing.assert_close(y, softmax_attention_reference(*scaled), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(y[:, :, 0], v[:, :, 0])
    (dv,) = torch.autograd.grad(y[:, :, 2].sum(), scaled[2])
    assert dv.isfinite().all() and not dv[:, :, 3:].any() and dv[:, :, :3].any()


@pytest.mark.parametrize("biased", [0, 2])
def test_gradcheck_twice(biased, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_ELEMENTS", 12)
    inputs = inputs_of(2, 2, 3, 3, biased=biased, features=2, values=2)
    with global_stream(Noise(2)):
        assert torch.autograd.gradcheck(softmax_attention, inputs)
        assert torch.autograd.gradgradcheck(softmax_attention, inputs)


def test_gradients_of_some_inputs_only():
    inputs = inputs_of(2, 2, 4, 4)
    for create_graph in (False, True):
        for wanted in ([0], [1, 2], [3]):
            chosen = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
            found, expected = (
                torch.autograd.grad(
                    f(*chosen).square().sum(),
                    [chosen[i] for i in wanted],
                    create_graph=create_graph,
                )
                for f in (softmax_attention, softmax_attention_reference)
            )
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_nothing_quadratic_is_kept():
    inputs = inputs_of(8, 2, 64, 64, biased=0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
        softmax_attention(*inputs)
    assert max(kept) <= 8 * 2 * 64 * 5


def test_float32_agrees_with_float64():
    inputs = [x.detach() for x in inputs_of(2, 2, 100, 100, features=16)]
    single = softmax_attention(*(x.float() for x in inputs))
    exact = softmax_attention_reference(*inputs)
    assert (single - exact).abs().max() < 2e-6 * exact.abs().max()


def single(inputs):
    return [x.detach().float().requires_grad_() for x in inputs]


def outcome(run, inputs):
    """y and all gradients of a sum that weights every entry of y differently."""
    y = run(*inputs)
    g = Noise(1).normal(*y.shape).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, inputs, g)


def near(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= COMPILED * other.abs().max()


def here(level):
    """The library of that level; skips where the processor cannot run it."""
    if level not in (*native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ()), "generic"):
        pytest.skip("not for this processor")
    return native.at_level(level)


SIZES = [  # batch, heads, queries, keys, features, values
    (1, 1, 1, 1, 1, 1),
    (3, 1, 7, 5, 3, 2),
    (2, 3, 33, 70, 17, 21),
    (9, 2, 100, 97, 5, 40),
    (1, 2, 130, 200, 16, 65),
    (1, 1, 6, 300, 140, 8),
]


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("biased", ["none", "shared", "each"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_values_and_gradients(size, biased, level):
    batch, heads, queries, keys, features, values = size
    biases = {"none": 0, "shared": 1, "each": heads}[biased]
    inputs = inputs_of(batch, heads, queries, keys, biased=biases, features=features, values=values)
    given = single(inputs)
    with here(level):
        y = softmax_attention(*given)  # kept, as older torch forgets what made it otherwise
        assert y.grad_fn is not None and y.grad_fn.name() == "_CompiledBackward"
        found = outcome(softmax_attention, given)
    near(found, outcome(softmax_attention_reference, [x.double() for x in given]))
    with native.without():
        near(outcome(softmax_attention, given), [x.double() for x in found])


@compiled
@pytest.mark.parametrize("level", LEVELS)
def test_compiled_forbidden_keys_and_large_scores(level):
    """Of the last query every key but one is forbidden, of the others all that are later."""
    inputs = inputs_of(2, 2, 40, 40, biased=2, values=20)
    with torch.no_grad():
        inputs[0] *= 30
        inputs[3] += torch.full((40, 40), -torch.inf, dtype=F64).triu(1)
        inputs[3][:, 39, :39] = -torch.inf
    given = single(inputs)
    with here(level):
        found = outcome(softmax_attention, given)
    expected = outcome(softmax_attention_reference, [x.double() for x in given])
    # Scores near 100 in float32 are 1e-5 off, and so are the weights.
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= 1e-4 * other.abs().max()
    assert torch.equal(found[0][:, :, 0], given[2][:, :, 0])
    assert torch.equal(found[0][:, :, 39], given[2][:, :, 39])
    assert not found[4].triu(1).any()


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("where", ["q", "k", "v", "bias", "dy"])
def test_compiled_nan_gives_nan(where, level):
    given = single(inputs_of(2, 2, 50, 37, biased=1))
    g = Noise(1).normal(2, 2, 50, 5)
    spoilt = [*given, g]["q k v bias dy".split().index(where)]
    with torch.no_grad():
        spoilt[(0,) * (spoilt.ndim - 2) + (3, 2)] = torch.nan

    def nans():
        y = softmax_attention(*given)
        return [x.isnan() for x in (y, *torch.autograd.grad(y, given, g))]

    with here(level):
        found = nans()
    with native.without():
        expected = nans()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert any(x.any() for x in found) and not all(x.all() for x in found)


@compiled
@pytest.mark.parametrize("biased", [1, 2])
def test_compiled_bytes_do_not_depend_on_threads(biased):
    given, outcomes = single(inputs_of(11, 2, 60, 70, biased=biased)), []
    for threads in (1, 2, 3):
        with cpu_threads(threads):
            outcomes.append(outcome(softmax_attention, given))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@compiled
@pytest.mark.parametrize("biased", [0, 1, 2])
def test_compiled_second_derivatives(biased):
    given = single(inputs_of(2, 2, 9, 7, biased=biased))

    def slopes(inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        y = softmax_attention(*inputs)
        g = Noise(1).normal(*y.shape).to(y.dtype)
        first = torch.autograd.grad(y, inputs, g, create_graph=True)
        return torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), inputs)

    near(slopes(given), slopes([x.double() for x in given]))


@compiled
@pytest.mark.parametrize("biased", [0, 1, 2])
def test_compiled_empty_batch(biased):
    y, *slopes = outcome(softmax_attention, single(inputs_of(0, 2, 5, 4, biased=biased)))
    assert y.shape == (0, 2, 5, 5)
    assert [x.shape[0] for x in slopes[:3]] == [0, 0, 0]
    assert not any(x.any() for x in slopes[3:])


@compiled
def test_compiled_takes_heads_as_layers_have_them_in_memory():
    """(batch, time, heads, width) and gradients that are no matrices of their own."""
    given = single(inputs_of(2, 3, 20, 30, biased=1))
    expected = outcome(softmax_attention, given)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in given[:3]]
    bias = given[3].detach().mT.contiguous().mT
    found = outcome(softmax_attention, [x.requires_grad_() for x in (*strided, bias)])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
