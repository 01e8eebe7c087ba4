"""Settings of poisons for trained classifiers, and where in reading order a perturbation lies."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustssm.attacks.threat import Threat
from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.models.classifier import SequenceClassifier
from robustssm.models.tokens import Raster, Tokenizer
from robustssm.poisoning.augmented import ShiftFlip

Ramp = Literal["tokens", "rows"]


@settings
class Brewing:
    """How poisons are brewed; the defaults are the published ones, but for sizes and `tail`.

    Source: slutzky2024implicit, its code for CIFAR-10, after the gradient matching of Geiping et
    al. (Witches' Brew, ICLR 2021).
    """

    threat: Threat = Threat(eps=16 / 255)
    """What may be done to a base example; its bounds are the range of the data."""
    poisons: Annotated[int, Field(ge=1)] = 300
    """The budget: base examples that are perturbed."""
    targets: Annotated[int, Field(ge=1)] = 210
    """Test examples, drawn at random, that are to be misclassified."""
    high_loss: Annotated[float, Field(ge=0, le=1)] = 1 / 3
    """Share of the targets that form groups of their own: the correctly classified ones of largest
    loss."""
    high_loss_poisons: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the budget for those groups."""
    group_size: Annotated[int, Field(ge=1)] = 50
    """Targets whose gradient the poisons of one group match."""
    iterations: Annotated[int, Field(ge=1)] = 250
    restarts: Annotated[int, Field(ge=1)] = 8
    """Runs from different starts; each group keeps the one with the lowest objective."""
    step_size: Annotated[float, Field(gt=0)] = 0.385
    """Fraction of eps."""
    decay: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (3 / 8, 5 / 8, 7 / 8)
    """Shares of the iterations after which the step is multiplied by `decay_factor`."""
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    tail: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.15
    """Weight of the mean of ramp * (delta / eps)^2, the ramp falling from 1 where a sequence begins
    to 0 where it ends; so a perturbation gathers at the end. The published factor of 1e-7 on sums
    of squares is 0.15 for groups of 250 poisons on CIFAR-10 and 0.075 for those of 125."""
    ramp: Ramp = "tokens"
    """Whether the ramp follows the tokens as the model reads them, or the rows of an image."""
    dropout: bool = False
    """Whether dropout stays on, as it did in the published code; other modules never train."""
    augmentation: ShiftFlip = ShiftFlip()
    """Drawn anew for every poison and iteration; the gradient goes through it."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Poisons differentiated twice at once, for memory; None: those of a group. The gradient is
    the same, but for the masks of dropout."""

    def __post_init__(self) -> None:
        if self.threat.eps == 0:
            raise ValueError(
                violation(
                    "`Brewing(threat=Threat(eps=...))`",
                    "be above 0, as nothing could be perturbed",
                    0,
                    "For a study without perturbation, see the arm 'duplicated' of `Victim`.",
                )
            )
        if list(self.decay) != sorted(self.decay):
            raise ValueError(
                violation("`Brewing(decay=...)`", "rise", self.decay, "Sort the shares.")
            )

    def step(self, iteration: int) -> float:
        """Length of the step at an iteration, from 0, in the units of the input."""
        passed = sum(iteration >= int(share * self.iterations) for share in self.decay)
        return self.step_size * self.threat.eps * self.decay_factor**passed


@dataclass(frozen=True, eq=False)
class ReadingOrder:
    """When a model reads each entry of an example."""

    step: Int[Tensor, "*shape"]
    """Token or row of each entry, from 0."""
    length: int
    last: int
    """Steps at the end that count as the tail: what one row of an image has, or a 32nd part of a
    sequence."""

    def ramp(self) -> Float[Tensor, "*shape"]:
        """1 at the first step, falling evenly to 0 at the last, in float64."""
        return 1 - self.step.double() / max(self.length - 1, 1)

    def tail(self) -> Bool[Tensor, "*shape"]:
        """Which entries are read last."""
        return self.step >= self.length - self.last


def reading_order(
    shape: tuple[int, ...], *, ramp: Ramp = "tokens", tokens: Tokenizer | None = None
) -> ReadingOrder:
    """The reading order of examples of one shape.

    Args:
        shape: (channels, height, width) or (length, channels).
        ramp: "rows" counts the rows of an image, whatever the tokens are.
        tokens: How the model reads inputs; None: `Raster()`.

    Raises:
        ValueError: If there are no rows.
    """
    if ramp == "rows":
        if len(shape) != 3:
            advice = "Use ramp='tokens'."
            must = "be 'tokens' for sequences, which have no rows"
            raise ValueError(violation("`Brewing(ramp=...)`", must, "'rows'", advice))
        rows = torch.arange(shape[1])[:, None].expand(shape)
        return ReadingOrder(rows, shape[1], 1)
    tokens = tokens or Raster()
    length, channels = tokens.size(shape)
    number = torch.arange(length, dtype=torch.float64)[None, :, None].expand(1, length, channels)
    last = length // shape[1] if len(shape) == 3 else round(length / 32)
    step = tokens.inverse(number.contiguous(), shape)[0].long()
    return ReadingOrder(step, length, max(last, 1))


def tokens_of(model: nn.Module) -> Tokenizer:
    """How a model reads its inputs; pixel by pixel, if it does not say."""
    return model.config.tokens if isinstance(model, SequenceClassifier) else Raster()


def tail_energy(delta: Float[Tensor, "batch *shape"], order: ReadingOrder) -> float:
    """Mean over examples of |delta at the tail| / |delta|, 2-norms; 0 for a delta of 0.

    For entries of equal size it is the square root of the tail's share of the entries.
    """
    delta = delta.detach().double().cpu()
    whole = delta.flatten(1).norm(dim=1)
    last = (delta * order.tail()).flatten(1).norm(dim=1)
    return float((last / torch.where(whole > 0, whole, 1)).mean()) if len(delta) else math.nan
