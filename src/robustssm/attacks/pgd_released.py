"""PGD as the code released with qi2024exploring runs it, which is not PGD: for forensics only.

Its random start is added twice. Gradients are taken up to 2 eps away from the input, but the point
returned is within eps: the attack climbs at places it cannot go, and overstates robustness.
"""

from typing import Annotated

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.region import Region
from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise


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

    def passes(self, num_classes: int) -> Passes:
        """One of each per step."""
        return Passes(self.steps, self.steps)

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Runs the attack; the start is the first draw of `noise`.

        Raises:
            Inapplicable: If the norm is not linf or the threat is restricted: the released code
                knows neither.
        """
        if region.norm != "linf" or not region.whole:
            raise Inapplicable(
                "`PGDReleased` needs norm='linf' and a threat without restrictions, as the "
                f"released code knows no other; got norm='{region.norm}'. Use PGD."
            )
        eps = region.eps
        delta = noise.uniform(like=x, low=-eps, high=eps)
        base = (x + delta).clamp(region.low, region.high)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            return F.cross_entropy(logits, y[rows], reduction="none")

        for _ in range(self.steps):
            points = base + delta
            inside = (points >= region.low) & (points <= region.high)
            gradient = model.climb(points.clamp(region.low, region.high), loss).gradient
            # The released gradient is that of delta, which is zero where the clip cuts.
            delta = (delta + self.step_size * eps * (gradient * inside).sign()).clamp(-eps, eps)
        return (x + delta).clamp(region.low, region.high)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Few steps."""
        return (cls(steps=3),)
