"""Which epoch's checkpoint is "best": chosen on validation data, not on the test set."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.errors import violation

Rule = Literal[
    "validation_adversarial_accuracy", "validation_accuracy", "test_adversarial_accuracy", "last"
]
"""`test_adversarial_accuracy` is the rule of qi2024exploring; its "best" is optimistic."""


def score(rule: Rule, values: Mapping[str, float], *, epoch: int) -> tuple[float, float]:
    """How good an epoch is, larger is better; ties in accuracy go to the lower loss.

    Args:
        rule: The rule of selection.
        values: The epoch's figures, "validation_accuracy" and so on.
        epoch: Number of the epoch, for the rule "last".
    """
    if rule == "last":
        return float(epoch), 0.0
    return values[rule], -values[rule.replace("accuracy", "loss")]


@settings
class EarlyStopping:
    """Ends training once the figure of selection has not risen for `patience` epochs.

    It carries no state: what it asks for, the best epoch so far, is in every checkpoint, so that a
    resumed run stops where it would have stopped.

    Source: rice2020overfitting (early stopping on robust accuracy of held-out examples).
    """

    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a better figure."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training before which it never stops, and which it does not count: while eps or the
    learning rate rises."""

    def check(self, rule: Rule) -> None:
        """Refuses a rule under which it could do nothing.

        Raises:
            ValueError: If the latest epoch is always the best.
        """
        if rule == "last":
            raise ValueError(
                violation(
                    "`EarlyStopping`",
                    "go with a rule of selection that compares epochs",
                    "selection='last'",
                    "Choose 'validation_adversarial_accuracy'.",
                )
            )

    def due(self, *, epoch: int, epochs: int, best_epoch: int) -> bool:
        """Whether to stop now.

        Args:
            epoch: Epochs finished. Must have been measured, or patience runs out unseen.
            epochs: Epochs of the whole training.
            best_epoch: The best of those measured, counted from 1; 0 for none.
        """
        return epoch - max(best_epoch, self.start * epochs) >= self.patience
