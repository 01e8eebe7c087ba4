"""How a batch may be divided: into which rows, for whom, and into more where memory ran out."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from robustssm.core.errors import Inapplicable, OutOfMemory
from robustssm.training.objective import Objective


@dataclass(frozen=True)
class Share:
    """Some rows of a batch, and what part of it they are."""

    rows: slice
    weight: float

    @property
    def count(self) -> int:
        """How many rows."""
        return self.rows.stop - self.rows.start


def shares(count: int, parts: int, *, rows: slice | None = None) -> list[Share]:
    """Contiguous shares of a batch of `count`, whose sizes differ by one at most.

    Args:
        count: Examples of the whole batch, positive.
        parts: How many shares, positive; those beyond the number of rows have none.
        rows: What is shared out; the whole batch if None.
    """
    rows = rows or slice(0, count)
    # Rounded up, so that the first share, whose memory counts, is never the empty one.
    length = rows.stop - rows.start
    ends = [rows.start + math.ceil(length * k / parts) for k in range(parts + 1)]
    return [Share(slice(a, b), (b - a) / count) for a, b in itertools.pairwise(ends)]


def require_divisible(objective: Objective, model: object, *, count: int) -> None:
    """Refuses to divide batches where the outcome would be another.

    Args:
        objective: In force at the time.
        model: In train mode.
        count: Pieces that one process would take one after the other.

    Raises:
        Inapplicable: If an update changes the model, or examples see each other in it.
    """
    if count > 1 and not objective.divisible:
        raise Inapplicable(
            "Micro-batches need an objective that leaves the model alone within an update; got "
            f"{type(objective).__name__}, with which pieces of a batch would not add up to the "
            "whole. Set micro_batches=1, with a smaller batch_size or more --devices."
        )
    modules = model.modules() if isinstance(model, nn.Module) else ()
    for module in modules:
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if norm and not isinstance(module, nn.modules.instancenorm._InstanceNorm):
            raise Inapplicable(
                "A batch can be divided, into micro-batches or among devices, if its examples do "
                f"not see each other; got a model with {type(module).__name__}, which normalises "
                "over the batch. Use micro_batches=1 on one device, or another normalisation."
            )


class PieceTooLarge(Exception):
    """Memory was not enough for a piece of a batch; between the loop and `Pieces` only."""

    def more(
        self, objective: Objective, model: nn.Module, *, pieces: int, rows: int, steps: int
    ) -> int:
        """Pieces to begin the batch again in.

        Args:
            objective: In force at the time.
            model: In train mode.
            pieces: How many there were.
            rows: Examples of this process.
            steps: Steps that were taken on the batch.

        Raises:
            OutOfMemory: If there is no way.
        """
        if steps:
            raise OutOfMemory(
                f"A batch can only be begun again before its first step; memory ran out ({self}) "
                f"after {steps}. Set micro_batches={2 * pieces} from the start (--set)."
            ) from None
        if pieces >= rows:
            raise OutOfMemory(
                f"Training must fit into memory example by example; it does not ({self}). Use a "
                "smaller model, precision=bf16-mixed, or a device with more memory."
            ) from None
        try:
            require_divisible(objective, model, count=2)
        except Inapplicable as error:
            raise OutOfMemory(
                f"A batch of {rows} must fit into memory, or be divisible; it does not ({self}). "
                f"{error}"
            ) from None
        return min(2 * pieces, rows)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough: of a GPU, of torch on a CPU, of Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
