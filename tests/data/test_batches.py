"""Batches: every example once, as stored divided by 255, in the order asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.data.batches import as_floats, batches, epoch_order


def stored(n=10, dtype=torch.uint8):
    x = Noise(0).integers(n, 1, 3, 3, high=256).to(dtype)
    return Split(x, Noise(1).integers(n, high=4))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 9))
def test_an_epoch_shows_every_example_once_with_its_own_label(n, batch_size, seed):
    split = stored(n)
    order = epoch_order(n, Noise(seed))
    seen = list(batches(split, order=order, batch_size=batch_size))
    indices = torch.cat([batch.indices for batch in seen])
    assert torch.equal(indices, order) and sorted(indices.tolist()) == list(range(n))
    assert torch.equal(torch.cat([batch.x for batch in seen]), split.x[order] / 255)
    assert torch.equal(torch.cat([batch.y for batch in seen]), split.y[order])
    assert [len(batch) for batch in seen[:-1]] == [batch_size] * (len(seen) - 1)
    assert 1 <= len(seen[-1]) <= batch_size


def test_without_an_order_rows_come_as_they_are():
    assert [b.indices.tolist() for b in batches(stored(5), batch_size=2)] == [[0, 1], [2, 3], [4]]


def test_some_rows_may_be_visited_and_others_not():
    (batch,) = batches(stored(), order=torch.tensor([7, 2, 7]), batch_size=4)
    assert torch.equal(batch.x, stored().x[[7, 2, 7]] / 255)


def test_drop_last_leaves_out_what_is_smaller():
    sizes = [len(batch) for batch in batches(stored(10), batch_size=4, drop_last=True)]
    assert sizes == [4, 4]
    assert len(list(batches(stored(8), batch_size=4, drop_last=True))) == 2


def test_uint8_becomes_the_nearest_float_of_its_quotient():
    x = torch.arange(256).byte()
    assert torch.equal(as_floats(x), (torch.arange(256).double() / 255).float())
    assert as_floats(x).max() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_stay_as_they_are(dtype):
    split = stored(dtype=dtype)
    (batch,) = batches(split, batch_size=10)
    assert torch.equal(batch.x, split.x) and batch.x.dtype == dtype
    batch.x.zero_()
    assert split.x.any(), "a batch is a copy"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "`batch_size` must be positive; got 0"),
        ({"batch_size": 11, "drop_last": True}, "at most 10 with drop_last; got 11"),
        ({"batch_size": 2, "order": torch.tensor([0, 10])}, "from 0 to 9; got rows from 0 to 10"),
        ({"batch_size": 2, "order": torch.tensor([-1])}, "from 0 to 9; got rows from -1 to -1"),
        ({"batch_size": 2, "order": torch.arange(0)}, "must have examples to come from"),
    ],
)
def test_what_cannot_be_batched_is_refused_at_the_call(settings, message):
    with pytest.raises(ValueError, match=message):
        batches(stored(10), **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [False, True], ids=["copied", "resident"])
def test_batches_on_a_gpu_are_those_on_the_cpu_bit_for_bit(resident):
    split = Split(torch.arange(256).byte().reshape(64, 4), torch.arange(64))
    order = epoch_order(64, Noise(3))
    source = split.to("cuda") if resident else split
    there = list(batches(source, order=order, batch_size=10, device="cuda"))
    here = list(batches(split, order=order, batch_size=10))
    for one, two in zip(there, here, strict=True):
        assert one.x.is_cuda and one.y.is_cuda and one.indices.is_cuda
        assert torch.equal(one.x.cpu(), two.x) and torch.equal(one.y.cpu(), two.y)
        assert torch.equal(one.indices.cpu(), two.indices)
