"""Metrics of shifted features against numpy and scipy, and the laws that set them apart."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from robustssm.core.rng import Noise
from robustssm.ops import shift

METRICS = {
    "mse": lambda f, g: shift.over_norm(shift.mean_square(f, g), f),
    "kl": lambda f, g: shift.over_norm(shift.softmax_kl(f, g), f),
    "cosine": shift.cosine_distance,
    "relative": shift.relative,
}
ORACLES = {
    "mse": lambda f, g: ((g - f) ** 2).sum() / len(f) / np.linalg.norm(f),
    "kl": lambda f, g: rel_entr(softmax(f, 0), softmax(g, 0)).sum() / np.linalg.norm(f),
    "cosine": lambda f, g: 1 - (f * g).sum() / np.linalg.norm(f) / np.linalg.norm(g),
    "relative": lambda f, g: np.linalg.norm(g - f) / np.linalg.norm(f),
}
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5))


def features(shape=(3, 6, 4), *, seed=0, size=0.3, dtype=torch.float64):
    """Features with a mean, and the same after a shift."""
    noise = Noise(seed)
    clean = noise.fork("clean").normal(*shape, dtype=dtype) + 0.5
    return clean, clean + size * noise.fork("shift").normal(*shape, dtype=dtype)


def centred_alignment(f, g):
    """Linear CKA by its Gram matrices, (tokens, tokens)."""
    rows = [each.reshape(-1, each.shape[-1]) for each in (f.numpy(), g.numpy())]
    k, m = (each @ each.T for each in (r - r.mean(0) for r in rows))
    return (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)


def alignment(f, g):
    return float(shift.alignment_distance(shift.moments(f, g)))


@pytest.mark.parametrize("name", METRICS)
@given(shape=SHAPES, seed=st.integers(0, 99), size=st.sampled_from([1e-2, 0.3, 5.0]))
def test_each_example_has_the_value_of_its_formula(name, shape, seed, size):
    f, g = features(shape, seed=seed, size=size)
    expected = [ORACLES[name](*pair) for pair in zip(f.numpy(), g.numpy(), strict=True)]
    torch.testing.assert_close(
        METRICS[name](f, g), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14
    )


@given(seed=st.integers(0, 99), size=st.sampled_from([1e-2, 0.3, 5.0]))
def test_alignment_is_that_of_the_gram_matrices(seed, size):
    f, g = features((3, 5, 4), seed=seed, size=size)
    assert alignment(f, g) == pytest.approx(1 - centred_alignment(f, g), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", ["cosine", "cka"])
def test_tiny_shifts_keep_their_digits(name):
    measure = METRICS.get(name, lambda f, g: torch.tensor([alignment(f, g)]))
    f, g = features(size=1.0)
    small, smaller = (measure(f, f + t * (g - f)) for t in (1e-5, 1e-7))
    # Both are of second order in the shift; 1 - cos and 1 - CKA themselves would be 0 or 1e-16.
    torch.testing.assert_close(smaller * 1e4, small, rtol=1e-3, atol=0)
    assert (small > 1e-13).all()


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 0.25, 3.0, 1e4]))
def test_only_the_papers_metrics_follow_the_scale(seed, scale):
    f, g = features(seed=seed)
    mse, cosine, relative = (METRICS[name] for name in ("mse", "cosine", "relative"))
    torch.testing.assert_close(mse(scale * f, scale * g), scale * mse(f, g))
    torch.testing.assert_close(cosine(scale * f, scale * g), cosine(f, g))
    torch.testing.assert_close(relative(scale * f, scale * g), relative(f, g))
    assert alignment(scale * f, scale * g) == pytest.approx(alignment(f, g))


def test_the_divergence_is_of_second_order_in_a_small_scale():
    f, g = features()
    small, smaller = (shift.softmax_kl(s * f, s * g) for s in (1e-3, 1e-4))
    torch.testing.assert_close(small, 100 * smaller, rtol=5e-3, atol=0)


@given(seed=st.integers(0, 99))
def test_rotations_of_the_channels_change_all_but_the_divergence_of_softmaxes(seed):
    f, g = features(seed=seed)
    turn = torch.linalg.qr(Noise(seed).fork("turn").normal(4, 4, dtype=torch.float64)).Q
    for name in ("mse", "cosine", "relative"):
        torch.testing.assert_close(METRICS[name](f @ turn, g @ turn), METRICS[name](f, g))
    assert alignment(f @ turn, g @ turn) == pytest.approx(alignment(f, g), rel=1e-8)
    # Alignment also ignores where one of them lies, how large it is, and how it is turned.
    moved = alignment(f, 7 * g @ turn + 3)
    assert moved == pytest.approx(alignment(f, g), rel=1e-8)


@given(seed=st.integers(0, 99))
def test_a_constant_for_all_positions_leaves_the_divergence(seed):
    f, g = features(seed=seed)
    level = Noise(seed).fork("level").normal(3, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(shift.softmax_kl(f + level, g - level), shift.softmax_kl(f, g))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_moved_is_exactly_zero(dtype):
    f = torch.cat([features(dtype=torch.float64)[0], torch.zeros(1, 6, 4)]).to(dtype)
    found = shift.measured(f, f.clone())
    assert torch.equal(found.values(), torch.zeros(5, dtype=torch.float64))
    assert torch.equal(shift.by_position(f, f), torch.zeros(4, 6, dtype=torch.float64))


def test_zero_features():
    f, g = features((1, 6, 4))
    zero = torch.zeros_like(f)
    for name, measure in METRICS.items():
        there = float(measure(zero, g))
        assert there == (1 if name == "cosine" else math.inf)
        assert float(measure(zero, zero)) == 0
    assert float(shift.cosine_distance(f, zero)) == pytest.approx(1)
    assert float(shift.relative(f, zero)) == 1
    assert alignment(zero, g) == alignment(f, zero) == 1
    assert alignment(zero, zero) == alignment(zero, zero + 2) == 0


def test_one_position():
    f, g = features((3, 1, 4), size=9.0)
    assert torch.equal(shift.softmax_kl(f, g), torch.zeros(3, dtype=torch.float64))
    assert alignment(f[:1], g[:1]) == 0  # a single token has no variance: nothing to align


def test_softmaxes_that_underflow():
    f = torch.tensor([[[0.0], [1000.0], [0.0]]])
    g = torch.tensor([[[1000.0], [0.0], [0.0]]])
    assert float(shift.softmax_kl(f, g)) == pytest.approx(1000)
    assert float(shift.softmax_kl(1e30 * f, 1e30 * f)) == 0


@given(seed=st.integers(0, 99))
def test_nan_stays_in_its_example(seed):
    f, g = features(seed=seed)
    g[1, 2, 3] = math.nan
    for measure in METRICS.values():
        assert measure(f, g).isnan().tolist() == [False, True, False]
        assert measure(g, f).isnan().tolist() == [False, True, False]
    assert shift.by_position(f, g).isnan().nonzero().tolist() == [[1, 2]]
    assert shift.measured(f, g).values().isnan().all()


def test_positions_are_told_apart():
    f, g = features()
    expected = np.linalg.norm((g - f).numpy(), axis=2) / np.linalg.norm(f.numpy(), axis=2)
    np.testing.assert_allclose(shift.by_position(f, g).numpy(), expected, rtol=1e-12)


@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(1, 6), max_size=3), far=st.booleans())
def test_parts_together_are_the_whole(seed, cuts, far):
    f, g = features((7, 5, 3), seed=seed)
    if far:  # a mean much larger than the spread
        f, g = f + 1e4, g + 1e4
    edges = sorted({0, 7, *cuts})
    parts = [shift.measured(f[a:b], g[a:b]) for a, b in pairwise(edges)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.plus(part)
    torch.testing.assert_close(whole.values(), shift.measured(f, g).values(), rtol=1e-6, atol=0)
    assert whole.examples == 7 and whole.moments.tokens == 35


def test_many_entries_at_once_are_the_same(monkeypatch):
    f, g = features((7, 5, 3))
    whole = shift.measured(f, g)
    monkeypatch.setattr(shift, "_ENTRIES", 31)  # two examples
    torch.testing.assert_close(shift.measured(f, g).values(), whole.values(), rtol=1e-12, atol=0)


def test_values_are_means_over_examples_and_the_alignment_of_all():
    f, g = features()
    means = [float(measure(f, g).mean()) for measure in METRICS.values()]
    found = shift.measured(f, g).values().tolist()
    assert found == pytest.approx([*means, 1 - centred_alignment(f, g)], rel=1e-9)


def test_single_precision_is_close():
    f, g = features((6, 40, 16), size=0.01)
    single = shift.measured(f.float(), g.float()).values()
    # The shift of 1e-2 itself is known to 1e-5 or so in float32.
    torch.testing.assert_close(single, shift.measured(f, g).values(), rtol=1e-4, atol=0)
