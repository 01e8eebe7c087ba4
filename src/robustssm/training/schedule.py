"""How the learning rate changes: a pure function of progress, so resuming needs no state."""

import math
from typing import Annotated, Literal

from pydantic import Field

from robustssm.core.config import settings


@settings
class Schedule:
    """Factor on the learning rate over training.

    After a linear rise over the first `warmup` of training, with p the progress from there to the
    end in [0, 1]:
    cosine: final + (1 - final)(1 + cos(pi p)) / 2; linear: 1 + (final - 1) p; constant: 1.
    """

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of training."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor at the end."""
    per: Literal["epoch", "step"] = "step"
    """Whether the factor moves after every step or, as the published code's, after every epoch."""

    def factor(self, progress: float) -> float:
        """The factor at `progress` in [0, 1] through training."""
        if progress < self.warmup:
            return progress / self.warmup
        p = (progress - self.warmup) / (1 - self.warmup)
        if self.shape == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * p)) / 2
        if self.shape == "linear":
            return 1 + (self.final - 1) * p
        return 1.0
