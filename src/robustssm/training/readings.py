"""Scalars on their way from the device: read at once from a CPU, one batch late from a GPU."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import NonFiniteLoss


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a batch did, once its scalars are known."""

    epoch: int
    """Its epoch, counted from 1."""
    batch: int
    """Batches of that epoch finished with it."""
    step: int
    """Optimiser steps taken with it."""
    examples: int
    values: Mapping[str, float]
    """The scalars of its last update."""
    micro_batches: int = 1
    """Pieces that it was processed in; more than for the batch before if memory ran out."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The scalars of one update, perhaps still on their way."""

    names: tuple[str, ...]
    wait: Callable[[], list[float]]
    epoch: int
    step: int
    gradients: bool
    """Whether the gradient must be finite too."""
    late: bool
    """Whether the update's step is taken before they are looked at."""

    def values(self) -> dict[str, float]:
        """Waits for them.

        Raises:
            NonFiniteLoss: If one is not finite.
        """
        scalars = dict(zip(self.names, self.wait(), strict=True))
        bad = [
            f"'{name}' is {value}"
            for name, value in scalars.items()
            if not math.isfinite(value) and (self.gradients or name != "gradient_norm")
        ]
        if bad:
            steps = (
                "Steps were taken on it, as a GPU is not waited for, but no checkpoint holds them."
                if self.late
                else "No step was taken on it."
            )
            raise NonFiniteLoss(
                f"Loss and gradients must stay finite; in epoch {self.epoch}, "
                f"step {self.step}: {', '.join(bad)}. {steps}"
            )
        return scalars


@dataclass(frozen=True)
class Fetching:
    """How scalars come from a device."""

    start: Callable[[Float[Tensor, " scalars"]], Callable[[], list[float]]]
    """Sends them on their way; what it returns waits for them."""
    lag: int
    """Batches that may be pending when the next one is begun; 0 to look at once."""

    def read(
        self, scalars: Mapping[str, Tensor], *, epoch: int, step: int, gradients: bool
    ) -> Reading:
        """Sends named scalars on their way in one piece; the rest as of `Reading`."""
        values = torch.stack([t.float().reshape(()) for t in scalars.values()])
        return Reading(
            names=tuple(scalars),
            wait=self.start(values),
            epoch=epoch,
            step=step,
            gradients=gradients,
            late=self.lag > 0,
        )


@dataclass(frozen=True)
class Pending:
    """A batch that was trained on, and whose scalars nobody has looked at yet."""

    readings: list[Reading]
    report: Report
    """Without values."""

    def settled(self) -> Report:
        """Waits for the scalars.

        Raises:
            NonFiniteLoss: If a scalar of one of its updates is not finite.
        """
        values = [reading.values() for reading in self.readings]
        return replace(self.report, values=values[-1] if values else {})


def fetching_from(device: torch.device) -> Fetching:
    """At once from a CPU; through pinned memory, one batch late, from a GPU."""
    if device.type == "cuda":
        return Fetching(_through_pinned_memory, lag=1)
    return AT_ONCE


def _at_once(values: Float[Tensor, " scalars"]) -> Callable[[], list[float]]:
    found = values.tolist()
    return lambda: found


AT_ONCE = Fetching(_at_once, lag=0)


def _through_pinned_memory(values: Float[Tensor, " scalars"]) -> Callable[[], list[float]]:
    # Into memory that the system may move elsewhere, a copy would wait for all work before it.
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def wait() -> list[float]:
        arrived.synchronize()
        return host.tolist()

    return wait
