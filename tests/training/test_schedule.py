"""The learning rate's factor against its formula and torch's own scheduler."""

import math

import pytest
import torch

from robustssm.training.schedule import Schedule


def test_cosine_per_epoch_is_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    ours = Schedule(shape="cosine")
    for epoch in range(7):
        assert math.isclose(optimizer.param_groups[0]["lr"], ours.factor(epoch / 7), abs_tol=1e-12)
        optimizer.step()
        theirs.step()


def test_warmup_rises_from_zero_and_the_end_is_final():
    schedule = Schedule(shape="linear", warmup=0.25, final=0.1)
    assert schedule.factor(0.0) == 0.0
    assert schedule.factor(0.125) == 0.5
    assert schedule.factor(0.25) == 1.0
    assert schedule.factor(1.0) == pytest.approx(0.1)


def test_constant_stays():
    assert {Schedule(shape="constant").factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_warmup_of_everything_is_refused():
    with pytest.raises(ValueError, match=r"`Schedule\(warmup=...\)` must be less than 1"):
        Schedule(warmup=1.0)
