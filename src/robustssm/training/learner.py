"""What training changes: model, optimiser, memory and average, and how far it is."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from robustssm.training.averaging import WeightAverage
from robustssm.training.objective import Memory
from robustssm.training.readings import Pending, Report


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
    micro_batches: int = 1
    """Pieces in which this process takes its rows of a batch; doubled when memory is not enough."""
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
