"""Scalars read one batch late, as from a GPU: the same training, and no NaN goes unnoticed."""

import math

import pytest
import torch

from robustssm.core.errors import NonFiniteLoss
from robustssm.core.rng import Noise
from robustssm.training import loop
from robustssm.training.readings import AT_ONCE, Fetching, fetching_from
from tests.training.tiny import CrossEntropy, epoch


class Slow:
    """A device on which scalars are under way until somebody waits for them."""

    def __init__(self):
        self.events = []
        self._count = 0

    def start(self, values):
        number, found = self._count, values.tolist()
        self._count += 1
        self.events.append(f"batch {number}")

        def wait():
            self.events.append(f"read {number}")
            return found

        return wait


@pytest.fixture
def slow(monkeypatch):
    device = Slow()
    monkeypatch.setattr(loop, "fetching_from", lambda _: Fetching(device.start, lag=1))
    return device


def at_step(monkeypatch, step, change):
    """Calls `change(learner)` before the training of a step."""
    train = loop._train

    def changed(learner, *arguments, **keywords):
        if learner.step + 1 == step:
            change(learner)
        return train(learner, *arguments, **keywords)

    monkeypatch.setattr(loop, "_train", changed)


def spoil(learner):
    with torch.no_grad():
        next(learner.model.parameters()).fill_(math.nan)


def fail(learner):
    raise RuntimeError("as an attack might on NaN")


def test_who_reads_when():
    assert fetching_from(torch.device("cpu")) is AT_ONCE and AT_ONCE.lag == 0
    assert fetching_from(torch.device("mps")) is AT_ONCE
    assert fetching_from(torch.device("cuda")).lag == 1


def test_on_a_cpu_a_report_comes_before_the_next_batch(problem):
    learner = problem.learner()
    for report in epoch(problem, learner):
        assert (report.batch, report.step) == (learner.batch, learner.step)
        assert not learner.pending


def test_a_batch_is_read_when_the_next_is_under_way(problem, slow):
    learner = problem.learner()
    seen = [(report.batch, learner.step) for report in epoch(problem, learner)]
    assert slow.events == ["batch 0", "batch 1", "read 0", "batch 2", "read 1", "read 2"]
    assert seen == [(1, 2), (2, 3), (3, 3)]
    assert not learner.pending and (learner.epoch, learner.batch) == (1, 0)


def test_reading_late_changes_no_bit(problem, monkeypatch):
    at_once, late = problem.learner(average=0.9), problem.learner(average=0.9)
    expected = [report for _ in range(2) for report in epoch(problem, at_once)]
    device = Slow()
    monkeypatch.setattr(loop, "fetching_from", lambda _: Fetching(device.start, lag=1))
    reports = [report for _ in range(2) for report in epoch(problem, late)]
    assert reports == expected
    assert (late.sums, late.examples) == (at_once.sums, at_once.examples)
    for a, b in zip(at_once.model.parameters(), late.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_stopping_with_a_batch_pending_loses_nothing(problem, slow):
    learner = problem.learner()
    first = epoch(problem, learner)
    assert next(first).batch == 1
    first.close()
    assert learner.batch == 2 and len(learner.pending) == 1 and learner.examples == 16
    rest = list(epoch(problem, learner, start=2))
    assert [report.batch for report in rest] == [2, 3]
    whole = problem.learner()
    list(epoch(problem, whole))
    assert learner.sums == whole.sums and learner.examples == 48


def test_settling_empties_what_is_pending_once(problem, slow):
    learner = problem.learner()
    running = epoch(problem, learner)
    next(running)
    assert [report.step for report in learner.settle()] == [2]
    assert learner.settle() == [] and learner.examples == 32
    assert [report.step for report in running] == [3]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_nan_is_refused_one_batch_late_by_its_own_step(problem, slow, monkeypatch, step):
    at_step(monkeypatch, step, spoil)
    learner, reports = problem.learner(), []
    with pytest.raises(NonFiniteLoss, match=rf"step {step}: 'loss' is nan.*no checkpoint"):
        reports.extend(report.step for report in epoch(problem, learner))
    assert learner.step == min(step + 1, 3)
    assert learner.epoch == 0
    assert all(math.isfinite(total) for total in learner.sums.values())


def test_nan_is_refused_again_and_again(problem, slow, monkeypatch):
    at_step(monkeypatch, 2, spoil)
    learner = problem.learner()
    running = epoch(problem, learner)
    next(running)
    for _ in range(2):
        with pytest.raises(NonFiniteLoss, match="step 2"):
            learner.settle()


def test_nan_is_named_when_it_makes_the_next_batch_fail(problem, slow, monkeypatch):
    at_step(monkeypatch, 2, spoil)
    at_step(monkeypatch, 3, fail)
    with pytest.raises(NonFiniteLoss, match="step 2"):
        list(epoch(problem, problem.learner()))


def test_other_failures_stay_what_they_are(problem, slow, monkeypatch):
    at_step(monkeypatch, 3, fail)
    learner = problem.learner()
    with pytest.raises(RuntimeError, match="as an attack might"):
        list(epoch(problem, learner))
    assert not learner.pending and learner.examples == 32


class Thrice(CrossEntropy):
    """Three updates of a batch, of which the second is not a number."""

    def updates(self, model, x, y, *, memory, noise):
        for factor in (1.0, math.nan, 1.0):
            (update,) = super().updates(model, x, y, memory=memory, noise=noise)
            yield type(update)(loss=factor * update.loss)


def test_every_update_of_a_batch_is_looked_at(problem, slow):
    learner = problem.learner()
    readings = loop._train(
        learner,
        Thrice(),
        problem.x,
        problem.y,
        noise=Noise(0),
        max_norm=math.inf,
        placement=problem.placement,
        fetching=Fetching(slow.start, lag=1),
    )
    assert [reading.step for reading in readings] == [1, 2, 3]
    readings[0].values()
    with pytest.raises(NonFiniteLoss, match="step 2"):
        readings[1].values()


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for():
    fetching = fetching_from(torch.device("cuda"))
    values = torch.arange(3.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(int(1e9))
    wait = fetching.start(values)
    assert not torch.cuda.current_stream().query(), "starting must not wait"
    assert wait() == [0.0, 1.0, 2.0]
