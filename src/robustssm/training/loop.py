"""The loop: the only backward on parameters, the only clipping, the only optimiser step."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.core.errors import NonFiniteLoss
from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.training.averaging import WeightAverage
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.optim import set_rate
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
    """All that training changes, and so all that a checkpoint keeps."""

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
    """Examples seen in the present epoch."""

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
) -> Iterator[dict[str, float]]:
    """Trains on the rest of the present epoch, yielding every batch's scalars after its step.

    Args:
        learner: Changed in place.
        objective: What a batch is worth; its schedules are evaluated at each batch.
        batches: The batches of this epoch from number `learner.batch` on.
        batches_per_epoch: Batches of a whole epoch.
        epochs: Epochs of the whole training.
        schedule: Factor on the learning rate.
        max_norm: Gradients are clipped to this 2-norm; infinity for none.
        placement: Device and precision.
        streams: Randomness; example i of epoch e always draws the same, whatever its batch.

    Raises:
        NonFiniteLoss: At the step before which the parameters were still good.
    """
    learner.model.train()
    for batch in batches:
        progress = (learner.epoch + learner.batch / batches_per_epoch) / epochs
        counted = learner.epoch / epochs if schedule.per == "epoch" else progress
        set_rate(learner.optimizer, schedule.factor(counted))
        # Dropout draws from torch's global generator, which therefore starts anew at every batch.
        with global_stream(streams.noise("dropout", learner.epoch, learner.batch)):
            scalars = train_batch(
                learner,
                objective.at(progress),
                batch.x,
                batch.y,
                noise=streams.examples("train", learner.epoch, indices=batch.indices),
                max_norm=max_norm,
                placement=placement,
            )
        learner.batch += 1
        learner.examples += len(batch.y)
        for name, value in scalars.items():
            learner.sums[name] = learner.sums.get(name, 0.0) + value * len(batch.y)
        yield scalars
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

    Raises:
        NonFiniteLoss: If a loss, or a gradient in full precision, is not finite; no step was taken
            on it.
    """
    scalars: dict[str, float] = {}
    updates = objective.updates(learner.model, x, y, memory=learner.memory, noise=noise)
    while (update := _next(updates, placement)) is not None:
        placement.backward(update.loss)
        norm = None
        if update.step:
            norm = placement.clip(learner.model, learner.optimizer, max_norm)
        scalars = _scalars(update, norm)
        _refuse_non_finite(scalars, learner, gradients=not placement.scales_losses)
        if update.step:
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            learner.step += 1
            if learner.average is not None:
                learner.average.update(learner.model)
    return scalars


def _next(updates: Iterator[Update], placement: Placement) -> Update | None:
    with placement.autocast():
        return next(updates, None)


def _scalars(update: Update, norm: Tensor | None) -> dict[str, float]:
    """All scalars of an update, with one wait for the device."""
    tensors = {"loss": update.loss.detach(), **update.parts}
    if norm is not None:
        tensors["gradient_norm"] = norm.detach()
    values = torch.stack([t.float().reshape(()) for t in tensors.values()]).tolist()
    return dict(zip(tensors, values, strict=True))


def _refuse_non_finite(scalars: dict[str, float], learner: Learner, *, gradients: bool) -> None:
    bad = [
        f"'{name}' is {value}"
        for name, value in scalars.items()
        if not math.isfinite(value) and (gradients or name != "gradient_norm")
    ]
    if bad:
        raise NonFiniteLoss(
            f"Loss and gradients must stay finite; in epoch {learner.epoch + 1}, "
            f"step {learner.step + 1}: {', '.join(bad)}. No step was taken on it."
        )
