"""The loop: learning, resuming in mid-epoch bit for bit, accumulating updates, refusing NaN."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from robustssm.core.errors import NonFiniteLoss
from robustssm.core.rng import Noise
from robustssm.training.loop import train_batch
from robustssm.training.objective import Objective, Update
from tests.training.tiny import CrossEntropy, epoch


class InTwoHalves(Objective):
    """The same gradient in two backward passes and one step."""

    def updates(self, model, x, y, *, memory, noise) -> Iterator[Update]:
        half = len(x) // 2
        yield Update(loss=F.cross_entropy(model(x[:half]), y[:half]) / 2, step=False)
        yield Update(loss=F.cross_entropy(model(x[half:]), y[half:]) / 2)


class Poisoned(Objective):
    """A term that is not a number."""

    def updates(self, model, x, y, *, memory, noise) -> Iterator[Update]:
        loss = F.cross_entropy(model(x), y)
        yield Update(loss=loss * math.nan, parts={"kl": torch.tensor(math.nan)})


def test_it_learns(problem):
    learner = problem.learner()
    for _ in range(30):
        list(epoch(problem, learner, epochs=30))
    accuracy = (learner.model(problem.x).argmax(-1) == problem.y).float().mean()
    assert accuracy > 0.95
    assert (learner.epoch, learner.batch, learner.step) == (30, 0, 90)
    assert learner.means()["twice"] == pytest.approx(2 * learner.means()["loss"])


def test_stopping_inside_an_epoch_changes_nothing(problem):
    whole, stopped = problem.learner(), problem.learner()
    list(epoch(problem, whole))
    first = epoch(problem, stopped)
    next(first), next(first)
    first.close()
    assert stopped.batch == 2
    list(epoch(problem, stopped, start=2))
    for a, b in zip(whole.model.parameters(), stopped.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.sums == stopped.sums


def test_updates_without_a_step_accumulate(problem):
    one, two = problem.learner(), problem.learner()
    x, y = problem.x, problem.y
    train_batch(one, CrossEntropy(), x, y, noise=Noise(0), placement=problem.placement)
    train_batch(two, InTwoHalves(), x, y, noise=Noise(0), placement=problem.placement)
    assert one.step == two.step == 1
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nan_stops_before_the_step_and_names_the_term(problem):
    learner = problem.learner()
    before = [p.detach().clone() for p in learner.model.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"in epoch 1, step 1: .*'kl' is nan"):
        train_batch(
            learner, Poisoned(), problem.x, problem.y, noise=Noise(0), placement=problem.placement
        )
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


def test_gradients_are_clipped_to_the_norm(problem):
    learner = problem.learner()
    scalars = train_batch(
        learner, CrossEntropy(), problem.x, problem.y, noise=Noise(0), placement=problem.placement
    )
    other = problem.learner()
    limit = scalars["gradient_norm"] / 2
    seen = []
    step = other.optimizer.step
    other.optimizer.step = lambda: (
        seen.append(torch.cat([p.grad.flatten() for p in other.model.parameters()]).norm())
        or step()
    )
    train_batch(
        other,
        CrossEntropy(),
        problem.x,
        problem.y,
        noise=Noise(0),
        max_norm=limit,
        placement=problem.placement,
    )
    assert float(seen[0]) == pytest.approx(limit, rel=1e-4)


class Lending(Objective):
    """Changes something for the time of a backward pass."""

    def __init__(self, log):
        self.log = log

    def updates(self, model, x, y, *, memory, noise) -> Iterator[Update]:
        try:
            loss = F.cross_entropy(model(x), y)
            yield Update(loss=loss * math.nan)
        finally:
            self.log.append("put back")


def test_an_objective_is_closed_when_its_loss_is_refused(problem):
    log = []
    with pytest.raises(NonFiniteLoss) as caught:
        train_batch(
            problem.learner(),
            Lending(log),
            problem.x,
            problem.y,
            noise=Noise(0),
            placement=problem.placement,
        )
    assert log == ["put back"] and caught
