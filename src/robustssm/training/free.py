"""Free training (shafahi2019adversarial): one backward pass moves weights and inputs."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.base import Passes
from robustssm.attacks.region import Region
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.ops import balls
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.perturbation import region_of, require_plain_linf
from robustssm.training.standard import accuracy
from robustssm.training.warmup import EpsWarmup, ramped

RELEASED_EPS = 4 / 255


@register("free")
@settings
class Free(Objective):
    """Every batch `replays` times: CE(f(x + delta), y), a step of the weights and one of delta.

    delta <- project(delta + step_size eps ascend(gradient at x + delta)), the gradient being that
    of the backward pass that moved the weights. delta starts at 0 and goes on from batch to batch,
    place by place. The model is in train mode throughout. At eps = 0 with one replay this is
    standard training, bit for bit. The source divides the number of epochs by `replays`, so that a
    run takes as many steps as standard training does (`epochs_divisor`).

    variant="released" is the code released with qi2024exploring: eps and step are 4/255 whatever
    the threat says, epochs are not divided, and the gradient is zero where bounds cut x + delta.

    Source: shafahi2019adversarial, algorithm 1; qi2024exploring, released code, for the variant.
    """

    threat: Threat
    replays: Annotated[int, Field(ge=1)] = 4
    """Passes over each batch, m in the source."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Fraction of eps."""
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        if self.variant == "paper":
            return
        require_plain_linf(self.threat, method="Free(variant='released')")
        if self.step_size != 1.0 or self.eps_warmup:
            raise ValueError(
                "`Free(variant='released')` must have step_size=1 and eps_warmup=0, as its eps and "
                f"step are 4/255 throughout; got step_size={self.step_size}, "
                f"eps_warmup={self.eps_warmup}. Use variant='paper'."
            )

    @property
    def epochs_divisor(self) -> int:
        """`replays`, as its source says; 1 in the released variant, which forgot it."""
        return self.replays if self.variant == "paper" else 1

    def passes(self, num_classes: int) -> Passes:
        """One of each per replay: the perturbation's gradient comes with the weights'."""
        del num_classes
        return Passes(self.replays, self.replays)

    def at(self, progress: float) -> "Free":
        """This objective with the eps in force at `progress` in [0, 1] through training."""
        if not self.eps_warmup:
            return self
        threat = ramped(self.threat, self.eps_warmup, progress)
        return dataclasses.replace(self, threat=threat, eps_warmup=0.0)

    def memory(self, example: Float[Tensor, "batch ..."], *, batch_size: int) -> Memory:
        """The perturbation, one for each place in a batch: "delta", (batch_size, ...)."""
        return {
            "delta": torch.zeros_like(example[:1]).repeat(batch_size, *[1] * (example.ndim - 1))
        }

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields `replays` steps; parts: adversarial_loss, adversarial_accuracy."""
        del noise
        region = region_of(self._threat, x, method="Free")
        for _ in range(self.replays):
            shifted = x + self._project(memory["delta"][: len(x)], region)
            points = region.project(shifted).detach().requires_grad_()
            logits = model(points)
            loss = F.cross_entropy(logits, y)
            parts = {"adversarial_loss": loss.detach(), "adversarial_accuracy": accuracy(logits, y)}
            yield Update(loss=loss, parts=parts)
            gradient = points.grad
            assert gradient is not None, "the loop must run backward before it asks for more"
            if self.variant == "released":
                gradient = gradient * ((shifted >= region.low) & (shifted <= region.high))
            move = self.step_size * region.eps * region.ascend(gradient)
            delta = memory["delta"][: len(x)]  # asked for again: a loop may have replaced it
            delta.copy_(self._project(delta + move, region))

    @property
    def _threat(self) -> Threat:
        if self.variant == "paper":
            return self.threat
        return dataclasses.replace(self.threat, eps=RELEASED_EPS)

    def _project(self, delta: Tensor, region: Region) -> Tensor:
        """Onto the ball alone: the bounds are another example's at the next batch."""
        whole = (-torch.inf, torch.inf)
        zero = torch.zeros_like(delta)
        return balls.project(delta, zero, norm=region.norm, eps=region.eps, bounds=whole)

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms, with a warm-up, and the released variant."""
        return (
            cls(threat=Threat(eps=0.1), replays=2, eps_warmup=0.5),
            cls(threat=Threat(norm="l2", eps=0.5), replays=3, step_size=0.5),
            cls(threat=Threat(eps=0.3), variant="released"),
        )
