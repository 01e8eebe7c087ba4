"""The losses of attacks against their formulas, written out."""

import math

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops import divergence


@pytest.fixture
def logits():
    return Noise(0).normal(6, 5, std=3.0, dtype=torch.float64)  # right and wrong rows with this y


@pytest.fixture
def y():
    return torch.tensor([0, 1, 2, 3, 4, 0])


def test_cross_entropy(logits, y):
    expected = [
        math.log(sum(math.exp(v) for v in row)) - row[c]
        for row, c in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        divergence.cross_entropy(logits, y), torch.tensor(expected).double(), rtol=1e-6, atol=0
    )


def test_kl_is_the_definition_and_its_gradients_are_right(logits):
    other = Noise(2).normal(6, 5, dtype=torch.float64)
    p, q = logits.softmax(1), other.softmax(1)
    torch.testing.assert_close(
        divergence.kl(logits, other), (p * (p / q).log()).sum(1), rtol=1e-9, atol=1e-12
    )
    assert torch.equal(divergence.kl(logits, logits), torch.zeros(6, dtype=torch.float64))
    both = logits[:2].clone().requires_grad_(), other[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(divergence.kl, both)


def test_kl_of_a_saturated_prediction_is_finite():
    clean = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    value = divergence.kl(clean, torch.tensor([[0.0, 200.0, 0.0]])).sum()
    (gradient,) = torch.autograd.grad(value, clean)
    assert float(value.detach()) == pytest.approx(200.0)
    assert gradient.isfinite().all()


def test_margin_is_positive_exactly_where_the_prediction_is_wrong(logits, y):
    margin = divergence.margin(logits, y)
    for row, c, m in zip(logits.tolist(), y.tolist(), margin.tolist(), strict=True):
        assert m == max(v for k, v in enumerate(row) if k != c) - row[c]
    assert torch.equal(margin > 0, divergence.wrong(logits, y))
    assert (margin > 0).any() and (margin < 0).any()


def test_cw_margin_stops_at_its_confidence(logits, y):
    expected = divergence.margin(logits, y).clamp(max=0.5)
    assert torch.equal(divergence.cw_margin(logits, y, confidence=0.5), expected)
    leaf = logits.clone().requires_grad_()
    (g,) = torch.autograd.grad(divergence.cw_margin(leaf, y).sum(), leaf)
    pulled = g.abs().sum(1) > 0
    assert torch.equal(pulled, divergence.margin(logits, y) < 0)


def test_dlr_is_the_ratio_and_invariant(logits, y):
    top = logits.sort(1, descending=True).values
    expected = divergence.margin(logits, y) / (top[:, 0] - top[:, 2])
    torch.testing.assert_close(divergence.dlr(logits, y), expected, rtol=1e-9, atol=0)
    moved = divergence.dlr(7 * logits + 3, y)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=0)
    assert divergence.dlr(torch.zeros(1, 3), torch.tensor([0])).isfinite().all()


def test_dlr_of_two_classes_is_refused(y):
    with pytest.raises(ValueError, match=r"at least 3 classes.*got 2.*margin"):
        divergence.dlr(torch.zeros(6, 2), y.clamp(max=1))


def test_targeted_dlr_is_the_ratio_and_invariant(logits, y):
    target = (y + 2) % 5
    for row, (z, c, t) in enumerate(zip(logits.tolist(), y.tolist(), target.tolist(), strict=True)):
        first, _, third, fourth, _ = sorted(z, reverse=True)
        expected = (z[t] - z[c]) / (first - (third + fourth) / 2)
        for shown in (logits, 7 * logits + 3):
            assert float(divergence.dlr_targeted(shown, y, target)[row]) == pytest.approx(
                expected, rel=1e-9
            )
    flat = divergence.dlr_targeted(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([1]))
    assert flat.isfinite().all()


def test_the_margin_towards_a_target(logits, y):
    target = (y + 1) % 5
    expected = [z[t] - z[c] for z, c, t in zip(logits, y, target, strict=True)]
    margins = divergence.margin_towards(logits, y, target)
    assert torch.equal(margins, torch.stack(expected))
    worst = torch.stack([divergence.margin_towards(logits, y, (y + k) % 5) for k in range(1, 5)])
    assert torch.equal(worst.amax(0), divergence.margin(logits, y))


def test_dlr_is_refused_exactly_where_it_is_not_defined():
    y = torch.zeros(2, dtype=torch.int64)
    for classes in (2, 3, 4, 10):
        z = Noise(0).normal(2, classes)
        for defined, loss in (
            (divergence.dlr_defined(classes), lambda z=z: divergence.dlr(z, y)),
            (
                divergence.dlr_defined(classes, targeted=True),
                lambda z=z: divergence.dlr_targeted(z, y, y + 1),
            ),
        ):
            if defined:
                assert loss().isfinite().all()
            else:
                with pytest.raises(ValueError, match=rf"got {classes}\. Climb"):
                    loss()
    assert divergence.dlr_defined(3) and not divergence.dlr_defined(3, targeted=True)


def test_a_row_with_a_nan_is_wrong():
    logits = torch.tensor([[math.nan, 0.0], [1.0, 0.0], [math.inf, 0.0]])
    assert divergence.wrong(logits, torch.tensor([0, 0, 0])).tolist() == [True, False, False]
