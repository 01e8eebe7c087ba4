"""Attacks in sequence, each on what those before it did not fool."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found
from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.ops import divergence


@register("ensemble")
@settings
class Ensemble(Attack):
    """Every stage attacks the examples that all stages before it left right.

    Source: croce2020reliable, section 5, for the idea; the stages are free.
    """

    stages: Annotated[tuple[Attack, ...], Field(min_length=1)] = (FGSM(), PGD())
    title: str = "ensemble"
    """How tables and records call it."""
    deviations: tuple[str, ...] = ()
    """How it differs from the published suite that it follows, in words."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Passes whose mean prediction counts, for a model that is random on purpose."""

    def __post_init__(self) -> None:
        labels = [stage.label for stage in self.stages]
        if len(set(labels)) < len(labels):
            raise ValueError(
                violation("`Ensemble(stages=...)`", "have labels of their own", str(labels))
            )

    @property
    def label(self) -> str:
        """Its title."""
        return self.title

    def passes(self, num_classes: int) -> Passes | None:
        """The sum over stages, as if none fooled anyone; each stage's points are judged once."""
        each = [stage.passes(num_classes) for stage in self.stages]
        known = [one for one in each if one is not None]
        if len(known) < len(each):
            return None
        forward = sum(one.forward for one in known) + len(known)
        return Passes(forward, sum(one.backward for one in known))

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Found:
        """Runs the stages; `part` is the number of the stage that fooled an example."""
        left = torch.arange(len(x), device=x.device)
        found = Found(x, x.new_full((len(x),), -torch.inf), torch.zeros_like(y, dtype=torch.bool))
        part = torch.full_like(y, -1)
        for number, stage in enumerate(self.stages):
            if not len(left):
                break
            within, stream = region.select(left), noise.select(left).fork("stage", stage.label)
            result = stage.perturb(model, x[left], y[left], region=within, noise=stream)
            points = result.points if isinstance(result, Found) else result
            points = within.project(points.detach())
            logits = model.logits(points)
            wrong = divergence.wrong(logits, y[left])
            found = found.merge(left, Found(points, divergence.margin(logits, y[left]), wrong))
            part[left[wrong]] = number
            left = left[~wrong]
        return Found(found.points, found.loss, found.wrong, part)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Quick stages."""
        return (cls(stages=(FGSM(), PGD(steps=2, restarts=2))),)
