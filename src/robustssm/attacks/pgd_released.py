"""PGD as the code released with qi2024exploring runs it, which is not PGD: for forensics only.

Its random start is added twice. Gradients are taken up to 2 eps away from the input, but the point
returned is within eps: the attack climbs at places it cannot go, and overstates robustness.
"""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.base import Attack
from robustssm.attacks.surrogate import frozen
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn


@register("pgd_released")
@settings
class PGDReleased(Attack):
    """The published numbers' attack: use it to explain them, never to measure a model.

    delta ~ U(-eps, eps), base = clip(x + delta); then, `steps` times,
    delta <- clip(delta + step_size eps sign(gradient at clip(base + delta)), -eps, eps),
    and finally clip(x + delta). The gradient is that of delta, so it is zero where the clip cuts.

    Source: qi2024exploring, released code, the class PGD.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    """Fraction of eps."""

    @property
    def label(self) -> str:
        """With its steps: "pgd_released-10"."""
        return f"{self.name}-{self.steps}"

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes through the model per example."""
        return self.steps, self.steps

    def perturb(
        self,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Runs the attack; the start is the first draw of `noise`.

        Raises:
            ValueError: If the norm is not linf, for which alone the released code exists.
        """
        if threat.norm != "linf":
            raise ValueError(
                "`PGDReleased` must have norm='linf', as the released code knows no other; "
                f"got norm='{threat.norm}'. Use PGD."
            )
        y = y.clone()
        delta = noise.uniform(like=x, low=-threat.eps, high=threat.eps)
        base = (x + delta).clamp(*threat.bounds)
        with frozen(logits):
            for _ in range(self.steps):
                delta.requires_grad_()
                loss = F.cross_entropy(
                    logits((base + delta).clamp(*threat.bounds)), y, reduction="sum"
                )
                (gradient,) = torch.autograd.grad(loss, delta)
                moved = delta.detach() + self.step_size * threat.eps * gradient.sign()
                delta = moved.clamp(-threat.eps, threat.eps)
        return (x + delta).clamp(*threat.bounds)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Few steps."""
        return (cls(steps=3),)
