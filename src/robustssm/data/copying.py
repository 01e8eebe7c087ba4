"""Selective copying (gu2023mamba), as classification: which word do the marked tokens spell?"""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.data.synthetic import Synthetic


@register("copying")
@settings
class Copying(Synthetic):
    """Sequences (length, 2) in [0, 1]: values, and a mark (1, else 0) on `items` early ones.

    Marked values are the middles (k + 1/2) / `levels` of as many intervals, moved by up to
    `jitter`; all others are uniform on [0, 1]. The class reads the k of the marked tokens, the
    first one first, as the digits of a number. A model must find the marked values (a gate: value
    and mark only matter together), tell the first from the second (order), and keep them to the end
    (memory): marks stand within the first `span` tokens, so that what comes later is independent of
    the class.

    Chance is 1 / levels**items. Whatever reads the last length - span tokens only cannot do better.
    A linear classifier of the whole sequence hardly can: 26 % at the defaults, where chance is 25
    %. The rule is right under any linf perturbation of the values (channel 0) of less than
    `radius`; whoever may move the marks (channel 1) by 1/2 decides.

    Source: gu2023mamba, section 4.1.1 (Selective Copying), with real values and one answer.
    """

    length: Annotated[int, Field(ge=2)] = 128
    items: Annotated[int, Field(ge=1, le=8)] = 2
    levels: Annotated[int, Field(ge=2)] = 2
    span: Annotated[int, Field(ge=1)] = 64
    """Marks stand among the first so many tokens."""
    jitter: Annotated[float, Field(ge=0)] = 0.05

    def __post_init__(self) -> None:
        if not self.items <= self.span <= self.length:
            raise ValueError(
                violation(
                    "`Copying(items=..., span=..., length=...)`",
                    "have items <= span <= length, so that the marks have room",
                    f"{self.items}, {self.span}, {self.length}",
                )
            )
        if self.radius <= 0:
            raise ValueError(
                violation(
                    "`Copying(jitter=...)`",
                    f"be below 1 / (2 levels) = {0.5 / self.levels:g}, so that levels stay apart",
                    self.jitter,
                )
            )

    @property
    def num_classes(self) -> int:
        """Words of `items` letters out of `levels`."""
        return self.levels**self.items

    @property
    def radius(self) -> float:
        """The linf distance on channel 0 below which the rule is right for every example."""
        return 0.5 / self.levels - self.jitter

    def draw(
        self, noise: Noise, count: int
    ) -> tuple[Float[Tensor, "n length channels"], Int[Tensor, " n"]]:
        """See `Synthetic.draw`."""
        order = noise.fork("places").uniform(count, self.span).argsort(dim=1, stable=True)
        places = order[:, : self.items].sort(1).values
        digits = noise.fork("digits").integers(count, self.items, high=self.levels)
        moved = noise.fork("jitter").uniform(count, self.items, low=-self.jitter, high=self.jitter)
        values = noise.fork("values").uniform(count, self.length)
        values.scatter_(1, places, (digits + 0.5) / self.levels + moved)
        marks = torch.zeros(count, self.length).scatter_(1, places, 1.0)
        return torch.stack([values, marks], 2), self._number(digits)

    def rule(self, x: Float[Tensor, "n length channels"]) -> Int[Tensor, " n"]:
        """See `Synthetic.rule`: reads the nearest level at every mark."""
        places = (
            x[..., 1].argsort(dim=1, descending=True, stable=True)[:, : self.items].sort(1).values
        )
        digits = (x[..., 0].gather(1, places) * self.levels).floor().clamp(0, self.levels - 1)
        return self._number(digits.long())

    def _number(self, digits: Int[Tensor, "n items"]) -> Int[Tensor, " n"]:
        weights = self.levels ** torch.arange(self.items - 1, -1, -1)
        return (digits * weights).sum(1)
