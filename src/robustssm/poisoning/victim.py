"""The victim of poisons: one model trained on several versions of the same data, alike otherwise.

Every arm begins with the same clean subset and the same base examples, row for row; has the same
initial draw and the same schedule; visits the rows that it shares with the other arms in the same
relative order; and goes through its whole schedule before any comparison. In the published code the
arms had different clean subsets, and schedules of different lengths.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams
from robustssm.data.base import Dataset, Split
from robustssm.data.batches import Batch, as_floats, batches, epoch_order
from robustssm.models.classifier import ModelConfig
from robustssm.poisoning.augmented import ShiftFlip
from robustssm.poisoning.brewing import Brewing
from robustssm.poisoning.targets import judged
from robustssm.training import checkpoint
from robustssm.training.loop import Learner, train_epoch
from robustssm.training.optim import AdamW, Optimizer
from robustssm.training.schedule import Schedule
from robustssm.training.standard import Standard

Arm = Literal["clean", "poisoned", "noise", "duplicated", "unregularised"]
ARMS: tuple[Arm, ...] = ("clean", "poisoned", "noise", "duplicated", "unregularised")


@settings
class Victim:
    """A data set, a model, how it is trained, and how it is poisoned."""

    dataset: Dataset
    model: ModelConfig
    brewing: Brewing
    clean: Annotated[int, Field(ge=1)] = 300
    """Training examples besides the base examples."""
    base_kept: bool = True
    """Whether base examples stay beside their perturbed copies, as published, or give way."""
    arms: tuple[Arm, ...] = ARMS
    """The clean arm comes first whether it is named or not: the others are measured by it."""
    surrogate: Literal["same", "other"] = "same"
    """Whether poisons are brewed on the clean arm's own model, whose initial draw the poisoned arm
    shares, as published; or on a model of another draw."""
    optimizer: Optimizer = AdamW(lr=1e-2, weight_decay=1e-2)
    schedule: Schedule = Schedule(final=0.01)
    epochs: Annotated[int, Field(ge=1)] = 60
    extra_epochs: Annotated[int, Field(ge=0)] = 60
    """At most so many more, at the last rate, until the training loss is that of the clean arm."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-3
    """How far above that loss is close enough."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    augmentation: ShiftFlip = ShiftFlip()
    """Of training inputs."""

    def __post_init__(self) -> None:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(violation("`Victim(arms=...)`", "name each arm once", self.arms))
        if not self.base_kept and "duplicated" in self.arms:
            must = "leave out 'duplicated' where poisons replace the base examples, as it would be"
            got = f"{self.arms} with base_kept=False"
            raise ValueError(violation("`Victim(arms=...)`", f"{must} the clean arm", got))
        if self.extra_epochs and self.schedule.factor(1.0) == 0:
            raise ValueError(
                violation(
                    "`Victim(schedule=...)`",
                    "end with a factor above 0, as extra epochs go on at that rate",
                    0,
                    "Set schedule.final, or extra_epochs=0.",
                )
            )


@dataclass(frozen=True, eq=False)
class Shares:
    """Who learns what: two disjoint choices from the training split."""

    clean: Split
    base: Split

    @property
    def both(self) -> Split:
        """The clean arm's training data."""
        return joined(self.clean, self.base)

    def arm(self, added: Float[Tensor, "poisons ..."] | None, *, base_kept: bool) -> Split:
        """An arm's training data: perturbed or repeated base examples after, or for, the base."""
        if added is None:
            return self.both
        copies = Split(added, self.base.y)
        return joined(self.both, copies) if base_kept else joined(self.clean, copies)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained arm."""

    model: nn.Module
    examples: int
    epochs: int
    steps: int
    train_loss: float
    matched: bool


def shares(train: Split, victim: Victim, *, noise: Noise) -> Shares:
    """Draws the clean subset and the base examples.

    Args:
        train: The training split.
        victim: How many of each.
        noise: Source of the choice.

    Raises:
        ValueError: If there are not enough examples.
    """
    wanted = victim.clean + victim.brewing.poisons
    if wanted > len(train):
        raise ValueError(
            violation(
                "`Victim(clean=...)` and `Brewing(poisons=...)`",
                f"add up to at most the {len(train)} training examples",
                f"{victim.clean} + {victim.brewing.poisons} = {wanted}",
                "Lower one of them.",
            )
        )
    order = noise.permutation(len(train))[:wanted]
    drawn = train.take(order.to(train.y.device))
    drawn = Split(as_floats(drawn.x), drawn.y)
    return Shares(drawn.take(slice(victim.clean)), drawn.take(slice(victim.clean, None)))


def joined(first: Split, second: Split) -> Split:
    """The examples of both, in that order."""
    return Split(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


def signs(x: Float[Tensor, "n ..."], settings: Brewing, *, noise: Noise) -> Float[Tensor, "n ..."]:
    """The control without a thought: every entry moved by eps up or down, then into the range."""
    return settings.threat.project(x + settings.threat.eps * noise.signs(like=x), x)


def train(
    victim: Victim,
    data: Split,
    *,
    num_classes: int,
    streams: Streams,
    placement: Placement,
    level: float | None = None,
    keep: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Trained:
    """Trains one arm through its whole schedule, and then on until its loss is low enough.

    Args:
        victim: Model and schedule.
        data: The arm's training data.
        num_classes: Of the data set.
        streams: The seed's: arms that share it share initial draw, order and augmentation.
        placement: Device and precision.
        level: Training loss to come down to, beyond the tolerance; None: that of the schedule.
        keep: Checkpoint of the trained arm; one that is there is taken for it.
        progress: Told the share of the schedule that is done.

    Raises:
        NonFiniteLoss: If training diverges.
    """
    shape = tuple(data.x.shape[1:])
    model = victim.model.build(shape=shape, num_classes=num_classes, noise=streams.noise("model"))
    model = placement.setup(model)
    if keep is not None and checkpoint.exists(keep):
        return Trained(model=model, **checkpoint.read_weights(keep, model)["extra"])
    optimizer = victim.optimizer.build(model, fused=not placement.scales_losses)
    learner = Learner(model, placement.setup_optimizer(optimizer), memory={})
    resident = data.to(placement.device) if placement.device.type == "cuda" else data
    while learner.epoch < victim.epochs:
        _epoch(victim, learner, resident, victim.schedule, streams, placement)
        if progress is not None:
            progress(learner.epoch / victim.epochs)
    loss = _loss(model, resident)
    goal = math.inf if level is None else level + victim.tolerance
    for group in learner.optimizer.param_groups:  # held where the schedule ended
        group["base_lr"] *= victim.schedule.factor(1.0)
    while loss > goal and learner.epoch < victim.epochs + victim.extra_epochs:
        _epoch(victim, learner, resident, Schedule(shape="constant"), streams, placement)
        loss = _loss(model, resident)
    outcome = {
        "examples": len(data),
        "epochs": learner.epoch,
        "steps": learner.step,
        "train_loss": loss,
        "matched": loss <= goal,
    }
    if keep is not None:
        checkpoint.write(keep, learner, extra=outcome)
    return Trained(model=model, **outcome)


def _loss(model: nn.Module, data: Split) -> float:
    losses, _ = judged(model, data, batch_size=512)
    return float(losses.mean())


def _epoch(
    victim: Victim,
    learner: Learner,
    data: Split,
    schedule: Schedule,
    streams: Streams,
    placement: Placement,
) -> None:
    order = epoch_order(len(data), streams.noise("order", learner.epoch))
    for _ in train_epoch(
        learner,
        Standard(),
        _batches(victim, data, order, learner.epoch, streams, placement),
        batches_per_epoch=math.ceil(len(data) / victim.batch_size),
        epochs=victim.epochs,
        schedule=schedule,
        max_norm=math.inf if victim.clip_norm is None else victim.clip_norm,
        placement=placement,
        streams=streams,
    ):
        pass


def _batches(
    victim: Victim,
    data: Split,
    order: Int[Tensor, " n"],
    epoch: int,
    streams: Streams,
    placement: Placement,
) -> Iterator[Batch]:
    device = placement.device
    for batch in batches(data, order=order, batch_size=victim.batch_size, device=device):
        noise = streams.examples("augment", epoch, indices=batch.indices)
        yield replace(batch, x=victim.augmentation(batch.x, noise))
