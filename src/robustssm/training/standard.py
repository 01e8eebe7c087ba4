"""Standard training: the cross-entropy of clean inputs, and the baseline of everything else."""

from collections.abc import Iterator
from typing import Annotated

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.base import Passes
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.training.objective import Memory, Objective, Update


@register("standard")
@settings
class Standard(Objective):
    """CE(f(x), y), averaged over the batch.

    Source: vapnik1999overview, section II (empirical risk minimisation); label smoothing:
    szegedy2016rethinking, section 7.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes."""

    def passes(self, num_classes: int) -> Passes:
        """One of each."""
        del num_classes
        return Passes(1, 1)

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields once; parts: clean_loss, accuracy."""
        del memory, noise
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        yield Update(
            loss=loss, parts={"clean_loss": loss.detach(), "accuracy": accuracy(logits, y)}
        )

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """With and without label smoothing."""
        return (cls(), cls(label_smoothing=0.1))


def accuracy(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Share of the batch that is classified correctly, detached, on its device."""
    return (logits.detach().argmax(1) == y).float().mean()
