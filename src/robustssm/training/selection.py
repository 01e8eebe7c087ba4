"""Which epoch's checkpoint is "best": chosen on validation data, not on the test set."""

from collections.abc import Mapping
from typing import Literal

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
