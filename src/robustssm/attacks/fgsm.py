"""The fast gradient sign method (goodfellow2015explaining): one step of full length."""

from typing import Annotated, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.pgd import PGD
from robustssm.attacks.region import Region
from robustssm.attacks.surrogate import LossName, refuse_flat_start
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise


@register("fgsm")
@settings
class FGSM(Attack):
    """x + step_size eps ascend(gradient of the loss at the start), projected; l2 is g / |g|.

    start="uniform" with step_size=1.25 is the training attack of wong2020fast.

    Source: goodfellow2015explaining, section 4; random start: wong2020fast, algorithm 3.
    """

    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Fraction of eps."""
    start: Literal["none", "uniform"] = "none"
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        refuse_flat_start("FGSM", loss=self.loss, start=self.start)

    @property
    def label(self) -> str:
        """With start and loss where they are not the usual: "fgsm", "fgsm-uniform"."""
        start = f"-{self.start}" if self.start != "none" else ""
        loss = f"-{self.loss}" if self.loss != "cross_entropy" else ""
        return f"{self.name}{start}{loss}"

    def passes(self, num_classes: int) -> Passes:
        """One of each, as PGD counts them."""
        return self._pgd.passes(num_classes)

    @property
    def _pgd(self) -> PGD:
        return PGD(steps=1, step_size=self.step_size, start=self.start, loss=self.loss, keep="last")

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """One step of PGD that keeps its end point."""
        return self._pgd.perturb(model, x, y, region=region, noise=noise)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """The published forms, and another loss."""
        return (cls(), cls(start="uniform", step_size=1.25), cls(loss="margin"))
