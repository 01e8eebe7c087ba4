"""The loop: the only backward on parameters, the only clipping, the only optimiser step.

On a CPU a batch's scalars are read, and refused if they are not finite, before its step. A GPU is
never waited for within a step: the scalars of a batch are read once the next batch is under way, so
a loss that is not finite is refused one step late. Until then nothing of that batch is in
`Learner.sums`, and who writes a checkpoint settles first: none can hold parameters that were
stepped on such a loss.

A batch may go in pieces, within a process (`Learner.micro_batches`) and among several: every
process is given the whole batch and takes its own rows. If memory is not enough, the batch is begun
again in twice as many pieces, which is possible as long as no step was taken on it; nothing is
exchanged with other processes before a step, so each does so by itself.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.training.division import PieceTooLarge, shares
from robustssm.training.exchange import summed
from robustssm.training.learner import Learner
from robustssm.training.objective import Objective
from robustssm.training.optim import set_rate
from robustssm.training.pieces import Pieces
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
        OutOfMemory: If a batch does not fit into memory, even in pieces.
        Inapplicable: If the objective or the model does not allow the pieces that are asked for.
    """
    fetching = fetching_from(placement.device)
    learner.model.train()
    for batch in batches:
        progress = (learner.epoch + learner.batch / batches_per_epoch) / epochs
        counted = learner.epoch / epochs if schedule.per == "epoch" else progress
        set_rate(learner.optimizer, schedule.factor(counted))
        try:
            readings = _train_or_retry(
                learner,
                objective.at(progress),
                batch.x,
                batch.y,
                # Dropout draws from torch's global generator, which so starts anew at every batch.
                dropout=streams.noise("dropout", learner.epoch, learner.batch),
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
            micro_batches=learner.micro_batches,
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
    readings = _train_or_retry(
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


def _train_or_retry(
    learner: Learner,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    noise: Noise,
    placement: Placement,
    dropout: Noise | None = None,
    **rest: Any,
) -> list[Reading]:
    """Trains on a batch; begins it again, in more pieces, if memory is not enough."""
    memory = {name: tensor.clone() for name, tensor in learner.memory.items()}
    step, drawn = learner.step, copy.copy(noise)
    # A stream of dropout for each process; the first one's is that of a run on one device.
    path = (placement.rank,) if placement.rank else ()
    while True:
        try:
            with nullcontext() if dropout is None else global_stream(dropout.fork(*path)):
                return _train(learner, objective, x, y, noise=noise, placement=placement, **rest)
        except PieceTooLarge as error:
            learner.micro_batches = error.more(
                objective,
                learner.model,
                pieces=learner.micro_batches,
                rows=shares(len(y), placement.processes)[placement.rank].count,
                steps=learner.step - step,
            )
        # Here the error is gone, and with it the tensors in the frames that it went through.
        learner.model.zero_grad(set_to_none=True)
        noise = copy.copy(drawn)
        for name, tensor in memory.items():
            learner.memory[name].copy_(tensor)
        if placement.device.type == "cuda":
            torch.cuda.empty_cache()


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
    readings, waiting = [], []
    pieces = Pieces(
        objective,
        learner.model,
        x,
        y,
        memory=learner.memory,
        noise=noise,
        placement=placement,
        count=learner.micro_batches,
    )
    with pieces.closing():
        while (update := pieces.advance()) is not None:
            waiting.append({"loss": update.loss, **update.parts})
            if placement.processes > 1 and not update.step:
                continue
            *earlier, latest = summed(learner.model, waiting, placement)
            waiting = []
            if update.step:
                norm = placement.clip(learner.model, learner.optimizer, max_norm)
                latest["gradient_norm"] = norm.detach()
            for scalars in (*earlier, latest):
                reading = fetching.read(
                    scalars,
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
    assert not waiting, "the last update of a batch must step"
    return readings
