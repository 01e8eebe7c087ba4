"""The adding problem (hochreiter1997long), as classification: in which bin lies the sum?"""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.data.synthetic import Synthetic


@register("adding")
@settings
class Adding(Synthetic):
    """Sequences (length, 2) in [0, 1]: numbers, and a mark (1, else 0) on two early ones.

    The class is the bin of the sum of the two marked numbers, out of `classes` bins of equal width
    on [0, 2], all equally likely; sums keep `margin` from the edges between bins. One mark stands
    in each half of the first `span` tokens, so that what comes later is independent of the class. A
    model must gate numbers by their marks, add them precisely, and keep the sum to the end.

    Chance is 1 / classes. Whatever reads the last length - span tokens only cannot do better. A
    linear classifier of the whole sequence hardly can: 28 % at the defaults, where chance is 25 %.
    The rule is right under any linf perturbation of the numbers (channel 0) of less than `radius`,
    as two of them move the sum by twice as much.

    Source: hochreiter1997long, section 5.4 (the adding problem), with bins instead of a regression.
    """

    length: Annotated[int, Field(ge=4)] = 128
    classes: Annotated[int, Field(ge=2)] = 4
    span: Annotated[int, Field(ge=2)] = 64
    """Marks stand among the first so many tokens, one in either half of them."""
    margin: Annotated[float, Field(ge=0)] = 0.15

    def __post_init__(self) -> None:
        if self.span > self.length:
            raise ValueError(
                violation("`Adding(span=...)`", f"be at most the length {self.length}", self.span)
            )
        if self.margin >= 1 / self.classes:
            raise ValueError(
                violation(
                    "`Adding(margin=...)`",
                    f"be below half the width of a bin, 1 / classes = {1 / self.classes:g}",
                    self.margin,
                )
            )

    @property
    def num_classes(self) -> int:
        """Number of bins."""
        return self.classes

    @property
    def radius(self) -> float:
        """The linf distance on channel 0 below which the rule is right for every example."""
        return self.margin / 2

    def draw(
        self, noise: Noise, count: int
    ) -> tuple[Float[Tensor, "n length channels"], Int[Tensor, " n"]]:
        """See `Synthetic.draw`."""
        half = self.span // 2
        first = noise.fork("first").integers(count, 1, high=half)
        second = half + noise.fork("second").integers(count, 1, high=self.span - half)
        places = torch.cat([first, second], 1)
        y = noise.fork("bin").integers(count, high=self.classes)
        low, high = self._sums(y)
        total = low + (high - low) * noise.fork("sum").uniform(count)
        # Both numbers must lie in [0, 1]; given their sum, the first is uniform on what is left.
        least, most = (total - 1).clamp(min=0), total.clamp(max=1)
        one = least + (most - least) * noise.fork("share").uniform(count)
        numbers = noise.fork("values").uniform(count, self.length)
        numbers.scatter_(1, places, torch.stack([one, total - one], 1).clamp(0, 1))
        marks = torch.zeros(count, self.length).scatter_(1, places, 1.0)
        return torch.stack([numbers, marks], 2), y

    def rule(self, x: Float[Tensor, "n length channels"]) -> Int[Tensor, " n"]:
        """See `Synthetic.rule`: adds the two marked numbers and looks up the bin."""
        places = x[..., 1].topk(2, dim=1).indices
        total = x[..., 0].gather(1, places).sum(1)
        return (total * self.classes / 2).floor().clamp(0, self.classes - 1).long()

    def _sums(self, y: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Where sums of each class lie: no margin at 0 and 2, which no sum can leave."""
        width = 2 / self.classes
        low = y * width + torch.where(y > 0, self.margin, 0.0)
        high = (y + 1) * width - torch.where(y < self.classes - 1, self.margin, 0.0)
        return low, high
