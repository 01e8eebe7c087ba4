"""What every training method is: a generator of losses."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.base import Passes
from robustssm.core.config import Named
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier

Memory = dict[str, Tensor]
"""Tensors that an objective carries from batch to batch; the loop saves them in checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One backward pass that an objective asks the loop for."""

    loss: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Named terms of the loss, detached, still on the device: means over the batch, as the loss."""
    step: bool = True
    """False: add to the gradient, do not step yet."""


class Objective(Named, ABC):
    """What a batch is worth to the learner. Sees no optimiser, steps nothing, logs nothing."""

    kind: ClassVar[str] = "objective"

    @property
    def epochs_divisor(self) -> int:
        """By what the method's source divides the epochs, as each batch is seen so often."""
        return 1

    def passes(self, num_classes: int) -> Passes | None:
        """Passes through a model of so many classes per example and epoch; None if not stated.

        Those that training needs: measurements, as Fast's alarm takes them, are left out.
        """
        del num_classes
        return None

    @property
    def divisible(self) -> bool:
        """Whether a batch may go piece after piece through every update, as if it went whole.

        The pieces share one model: what an update changes in it, the next piece would see. Between
        processes, which have a model each, every objective may divide a batch.
        """
        return True

    def at(self, progress: float) -> "Objective":
        """The objective in force at `progress` in [0, 1] through training, schedules evaluated."""
        del progress
        return self

    def memory(self, example: Float[Tensor, "batch ..."], *, batch_size: int) -> Memory:
        """Tensors carried between batches (the delta of free training). The loop saves them.

        One with axes has a row for each place in a batch; where a batch is divided, each piece gets
        the rows of its places. Scalars are those of the first piece.
        """
        del example, batch_size
        return {}

    @abstractmethod
    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields losses; before control returns, the loop has run backward and any step.

        Standard and PGD training and TRADES yield once; free training yields m steps; YOPO
        yields 2 m gradients, the last with a step, reading `tokens.grad` in between. An objective
        that changes something for a backward pass puts it back in a `finally`: the loop closes the
        generator, whatever happens.
        """

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Settings that the contract tests should try; the defaults if not overridden."""
        return (cls(),)
