"""Attention against one query at a time, and against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F

from robustssm.core.rng import Noise, global_stream
from robustssm.ops import attention
from robustssm.ops.attention import softmax_attention, softmax_attention_reference

F64 = torch.float64


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
