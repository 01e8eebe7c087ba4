"""Bytes that are known beforehand, wherever a Function hides them."""

import ctypes

import numpy as np
import pytest
import torch

from benchmarks.memory import saved_bytes
from robustssm.core.rng import Noise

N = 1000
SIZE = 4 * N


class Hidden(torch.autograd.Function):
    """Doubles; keeps `what(x)` on its context instead of saving it."""

    @staticmethod
    def forward(ctx, x, what):
        ctx.kept = what(x)
        return 2 * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * gradients[0], None


class Saved(torch.autograd.Function):
    """Doubles; saves its input and two new tensors."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x.clone(), x.clone())
        return 2 * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * gradients[0]


class Box:
    def __init__(self, tensor):
        self.tensor, self.itself = tensor, self


@pytest.fixture
def x():
    return Noise(0).normal(N).requires_grad_()


def test_a_known_function(x):
    assert saved_bytes(lambda: x + 1) == 0
    assert saved_bytes(lambda: x.exp()) == SIZE  # its output
    assert saved_bytes(lambda: x.sin()) == SIZE  # its input


def test_each_storage_counts_once(x):
    assert saved_bytes(lambda: x.sin() + x.cos() + x[:10].sin().sum()) == SIZE
    assert saved_bytes(lambda: x.sin().cos()) == 2 * SIZE


def test_what_a_function_saves(x):
    assert saved_bytes(lambda: Saved.apply(x)) == 3 * SIZE


@pytest.mark.parametrize(
    "what, size",
    [
        (lambda x: x.detach().clone(), SIZE),
        (lambda x: [x.detach().clone(), {"again": (x.detach().clone(),)}], 2 * SIZE),
        (lambda x: [x.detach()] * 3, SIZE),
        (lambda x: Box(x.detach().clone()), SIZE),
        (lambda x: np.zeros(N, dtype=np.float32)[10:], SIZE),
        (lambda x: (ctypes.c_float * N)(), SIZE),
        (lambda x: bytearray(SIZE), SIZE),
        (lambda x: ("settings", 3, None), 0),
    ],
    ids=["tensor", "nested", "thrice", "object", "array", "ctypes", "bytes", "settings"],
)
def test_what_a_function_keeps_elsewhere(x, what, size):
    assert saved_bytes(lambda: Hidden.apply(x, what)) == size
    assert saved_bytes(lambda: Hidden.apply(x + 1, what).sum() + 1) == size


def test_the_function_still_works(x):
    kept = []
    saved_bytes(lambda: kept.append(x.exp()) or kept[0])
    (gradient,) = torch.autograd.grad(kept[0].sum(), x)
    torch.testing.assert_close(gradient, x.detach().exp())
