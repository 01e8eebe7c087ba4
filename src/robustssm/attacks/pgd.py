"""Projected gradient descent (madry2018towards): steepest steps, each projected."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found, worst_of
from robustssm.attacks.surrogate import LossName, Surrogate, refuse_flat_start
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise


@register("pgd")
@settings
class PGD(Attack):
    """x <- project(x + step_size eps ascend(gradient of the loss at x)), from a start near x.

    Starts: "uniform" in the threat set, "none" for the input itself, "normal" for
    x + start_std N(0, 1), which the first gradient sees unprojected, as TRADES publishes it.
    Evaluation keeps each example's best iterate; training, as published, its last.

    Source: madry2018towards, section 2.1; start "normal", loss "kl": zhang2019trades, algorithm 1.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    """Fraction of eps: published steps of 0.04 at eps 0.3 are 0.04 / 0.3."""
    start: Literal["uniform", "none", "normal"] = "uniform"
    start_std: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """Deviation of the start "normal", in the units of the input."""
    restarts: Annotated[int, Field(ge=1)] = 1
    """Runs in all; later ones attack only examples that the earlier ones did not fool."""
    loss: LossName = "cross_entropy"
    keep: Literal["best", "last"] = "best"
    """Which iterate of a run: the misclassified one of highest loss, or the last."""

    def __post_init__(self) -> None:
        if self.restarts > 1 and self.start == "none":
            raise ValueError(
                "`PGD(restarts=...)` must be 1 where start='none', as every run from the same "
                f"point is the same run; got restarts={self.restarts}. Set start='uniform'."
            )
        refuse_flat_start("PGD", loss=self.loss, start=self.start)

    @property
    def label(self) -> str:
        """Steps, runs and loss where they are not the usual: "pgd-10", "pgd-50x5", "pgd-10-dlr"."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        loss = f"-{self.loss}" if self.loss != "cross_entropy" else ""
        return f"{self.name}-{self.steps}{runs}{loss}"

    def passes(self, num_classes: int) -> Passes:
        """Each run's steps; where the last point is to be judged, its forward pass as well."""
        last = self.keep == "best" or self.restarts > 1
        forward = self.restarts * (self.steps + last) + (self.loss == "kl")
        return Passes(forward, self.restarts * self.steps)

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Runs the attack; the start of run r is drawn from `noise.fork("start", r)`."""
        surrogate = Surrogate(self.loss, model, x, y)
        if self.restarts == 1 and self.keep == "last":
            return self._climb(surrogate, region, noise.fork("start", 0))[0]

        def search(rows: Tensor, run: int) -> Found:
            some, stream = surrogate.select(rows), noise.select(rows).fork("start", run)
            last, best = self._climb(some, region.select(rows), stream)
            end = Found(last, *some.value(last))
            return end if self.keep == "last" else best.best(end)

        return worst_of(self.restarts, search, torch.arange(len(x), device=x.device)).points

    def _climb(self, surrogate: Surrogate, region: Region, noise: Noise) -> tuple[Tensor, Found]:
        """One run: its last point, not yet evaluated, and the best of those before it."""
        x, points = region.x, self._start(region, noise)
        best = Found(x, x.new_full((len(x),), -torch.inf), x.new_zeros(len(x), dtype=torch.bool))
        for step in range(self.steps):
            value, gradient = surrogate.climb(points)
            if self.keep == "best" and (step > 0 or self.start != "normal"):
                best = best.best(Found(points, *value))
            move = self.step_size * region.eps * region.ascend(gradient)
            points = region.project(points + move)
        return points, best

    def _start(self, region: Region, noise: Noise) -> Tensor:
        if self.start == "uniform":
            return region.sample(noise)
        if self.start == "normal":
            return region.x + noise.normal(like=region.x, std=self.start_std)
        return region.x

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Every start, loss and rule of what to keep, in few steps."""
        return (
            cls(steps=3),
            cls(steps=3, restarts=2, loss="margin"),
            cls(steps=2, start="none", loss="dlr", keep="last"),
            cls(steps=3, start="normal", loss="kl", keep="last"),
            cls(steps=2, start="normal", restarts=2, keep="last"),
        )
