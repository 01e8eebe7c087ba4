"""The loop: the only backward on parameters, the only clipping, the only optimiser step.

On a CPU a batch's scalars are read, and refused if they are not finite, before its step. A GPU is
never waited for within a step: the scalars of a batch are read once the next batch is under way, so
a loss that is not finite is refused one step late. Until then nothing of that batch is in
`Learner.sums`, and who writes a checkpoint settles first: none can hold parameters that were
stepped on such a loss.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.training.averaging import WeightAverage
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.optim import set_rate
from robustssm.training.readings import AT_ONCE, Fetching, Pending, Reading, Report, fetching_from
from robustssm.training.schedule import Schedule


@runtime_checkable
class Batch(Protocol):
    """What the loop needs of a batch."""

    @property
    def x(self) -> Tensor:
        """Inputs (batch, ...) on the device."""
        ...

    @property
    def y(self) -> Tensor:
        """Classes (batch,) on the device."""
        ...

    @property
    def indices(self) -> Tensor:
        """Rows of the split (batch,): each example's identity for its noise."""
        ...


@dataclass
class Learner:
    """All that training changes, and so all that a checkpoint keeps, but for what is pending."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: Memory
    average: WeightAverage | None = None
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches finished within the present epoch."""
    step: int = 0
    """Optimiser steps taken."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum over the present epoch's examples of every logged scalar."""
    examples: int = 0
    """Examples seen in the present epoch, those of pending batches left out."""
    pending: deque[Pending] = field(default_factory=deque)
    """Batches whose scalars are not in the sums yet, oldest first; always empty on a CPU."""

    def settle(self, *, leave: int = 0) -> list[Report]:
        """Waits for pending batches, takes them into the sums, and reports them.

        Must be called before a checkpoint is written, which says nothing of pending batches.

        Args:
            leave: So many of the latest batches stay pending.

        Raises:
            NonFiniteLoss: If a loss of theirs was not finite.
        """
        reports = []
        while len(self.pending) > leave:
            report = self.pending[0].settled()  # one that is not finite stays, and is refused again
            self.pending.popleft()
            self.examples += report.examples
            for name, value in report.values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * report.examples
            reports.append(report)
        return reports

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """The enclosed lines see the weights that are evaluated: the average, where one is kept."""
        if self.average is None:
            yield
            return
        with self.average.applied(self.model):
            yield

    def means(self) -> dict[str, float]:
        """Mean over the present epoch's examples of every logged scalar."""
        return {name: total / max(self.examples, 1) for name, total in self.sums.items()}


def train_epoch(
    learner: Learner,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    batches_per_epoch: int,
    epochs: int,
    schedule: Schedule,
    max_norm: float,
    placement: Placement,
    streams: Streams,
) -> Iterator[Report]:
    """Trains on the rest of the present epoch, yielding every batch's report once it is known.

    On a CPU that is right after the batch's step; on a GPU after the next batch's. The epoch counts
    as finished after its last report.

    Args:
        learner: Changed in place; what is pending when the caller stops stays so, and is reported
            by the next call or by `Learner.settle`.
        objective: What a batch is worth; its schedules are evaluated at each batch.
        batches: The batches of this epoch from number `learner.batch` on.
        batches_per_epoch: Batches of a whole epoch.
        epochs: Epochs of the whole training.
        schedule: Factor on the learning rate.
        max_norm: Gradients are clipped to this 2-norm; infinity for none.
        placement: Device and precision.
        streams: Randomness; example i of epoch e always draws the same, whatever its batch.

    Raises:
        NonFiniteLoss: On a CPU at the step before which the parameters were still good; on a GPU
            one batch later, or at the end of the epoch.
    """
    fetching = fetching_from(placement.device)
    learner.model.train()
    for batch in batches:
        progress = (learner.epoch + learner.batch / batches_per_epoch) / epochs
        counted = learner.epoch / epochs if schedule.per == "epoch" else progress
        set_rate(learner.optimizer, schedule.factor(counted))
        try:
            # Dropout draws from torch's global generator, which so starts anew at every batch.
            with global_stream(streams.noise("dropout", learner.epoch, learner.batch)):
                readings = _train(
                    learner,
                    objective.at(progress),
                    batch.x,
                    batch.y,
                    noise=streams.examples("train", learner.epoch, indices=batch.indices),
                    max_norm=max_norm,
                    placement=placement,
                    fetching=fetching,
                    progress=progress,
                )
        except Exception:
            learner.settle()  # if the batch before was not finite, that is the reason to be told
            raise
        learner.batch += 1
        report = Report(
            epoch=learner.epoch + 1,
            batch=learner.batch,
            step=learner.step,
            examples=len(batch.y),
            values={},
        )
        learner.pending.append(Pending(readings, report))
        yield from learner.settle(leave=fetching.lag)
    yield from learner.settle()
    learner.epoch += 1
    learner.batch = 0


def train_batch(
    learner: Learner,
    objective: Objective,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    noise: Noise,
    max_norm: float = math.inf,
    placement: Placement,
) -> dict[str, float]:
    """Runs every update that the objective asks for; returns the last one's scalars.

    Waits for the device at every update, whatever it is.

    Raises:
        NonFiniteLoss: If a loss, or a gradient in full precision, is not finite; no step was taken
            on it.
    """
    readings = _train(
        learner,
        objective,
        x,
        y,
        noise=noise,
        max_norm=max_norm,
        placement=placement,
        fetching=AT_ONCE,
    )
    return readings[-1].values() if readings else {}


def _train(
    learner: Learner,
    objective: Objective,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    noise: Noise,
    max_norm: float,
    placement: Placement,
    fetching: Fetching,
    progress: float = 1.0,
) -> list[Reading]:
    """Runs every update; what is read at once is checked before the update's step."""
    readings = []
    updates = objective.updates(learner.model, x, y, memory=learner.memory, noise=noise)
    with _closed(updates):
        while (update := _next(updates, placement)) is not None:
            placement.backward(update.loss)
            norm = None
            if update.step:
                norm = placement.clip(learner.model, learner.optimizer, max_norm)
            reading = fetching.read(
                {"loss": update.loss.detach(), **update.parts}
                | ({} if norm is None else {"gradient_norm": norm.detach()}),
                epoch=learner.epoch + 1,
                step=learner.step + 1,
                gradients=not placement.scales_losses,
            )
            if not fetching.lag:
                reading.values()
            readings.append(reading)
            if update.step:
                learner.optimizer.step()
                learner.optimizer.zero_grad(set_to_none=True)
                learner.step += 1
                if learner.average is not None:
                    learner.average.update(learner.model, progress=progress)
    return readings


@contextmanager
def _closed(updates: Iterator[Update]) -> Iterator[None]:
    """Closes a generator on leaving, so that what it lent to a backward pass is put back."""
    try:
        yield
    finally:
        close = getattr(updates, "close", None)
        if close is not None:
            close()


def _next(updates: Iterator[Update], placement: Placement) -> Update | None:
    with placement.autocast():
        return next(updates, None)
