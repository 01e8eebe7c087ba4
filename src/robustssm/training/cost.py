"""What training costs, in passes through the model, and how many epochs cost the same.

A pass is forward or backward, of one example, through the whole network; both count alike. Passes
through the first layer alone (YOPO), updates of the optimiser and measurements are left out. One
forward and one backward pass make one equivalent: standard training costs 1 per example and epoch,
PGD training with k steps k + 1, free training with m replays m.
"""

import math
from dataclasses import dataclass

from robustssm.attacks.base import Passes
from robustssm.core.errors import Inapplicable, violation
from robustssm.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training costs, per training example."""

    forward: int
    """Passes an epoch."""
    backward: int
    """Passes an epoch."""
    epochs: int

    @property
    def per_epoch(self) -> float:
        """Forward/backward equivalents of an epoch."""
        return (self.forward + self.backward) / 2

    @property
    def total(self) -> float:
        """Forward/backward equivalents of all epochs."""
        return self.epochs * self.per_epoch

    def to_dict(self) -> dict[str, float]:
        """JSON form, as it stands in a run's record."""
        return {
            "forward": self.forward,
            "backward": self.backward,
            "per_epoch": self.per_epoch,
            "epochs": self.epochs,
            "total": self.total,
        }


def cost(epochs: int, objective: Objective, *, num_classes: int) -> Cost:
    """What so many epochs cost.

    Args:
        epochs: At least 1.
        objective: To be trained.
        num_classes: Of the model.

    Raises:
        Inapplicable: If the objective does not state its cost.
    """
    found = _passes(objective, num_classes)
    return Cost(forward=found.forward, backward=found.backward, epochs=epochs)


def affordable(budget: float, objective: Objective, *, num_classes: int) -> int:
    """The most epochs that cost no more than a budget.

    Args:
        budget: Forward/backward equivalents per training example.
        objective: To be trained.
        num_classes: Of the model.

    Raises:
        Inapplicable: If the objective does not state its cost.
        ValueError: If the budget does not pay for one epoch.
    """
    one = cost(1, objective, num_classes=num_classes)
    if not one.per_epoch <= budget < math.inf:
        raise ValueError(
            violation(
                "A budget in forward/backward equivalents per example",
                f"pay for an epoch of {type(objective).__name__}, {one.per_epoch:g}",
                f"{budget:g}",
                f"Give {one.per_epoch:g} times the epochs that you want.",
            )
        )
    return int(budget // one.per_epoch)


def equal_budget(
    epochs: int, objective: Objective, reference: Objective, *, num_classes: int
) -> int:
    """Epochs of `objective` that cost no more than `epochs` of `reference`, but at least one.

    Args:
        epochs: Of the reference, at least 1.
        objective: To be trained.
        reference: Whose budget it gets.
        num_classes: Of the model.

    Raises:
        Inapplicable: If either does not state its cost.
    """
    price, paid = (sum(_passes(each, num_classes)) for each in (objective, reference))
    return max(1, epochs * paid // price)


def divided_epochs(epochs: int, objective: Objective) -> int:
    """Epochs as the method's source counts them: divided by its replays, rounded up.

    Args:
        epochs: Of a method that sees each batch once an epoch, at least 1.
        objective: To be trained.
    """
    return math.ceil(epochs / objective.epochs_divisor)


def _passes(objective: Objective, num_classes: int) -> Passes:
    found = objective.passes(num_classes)
    if found is None:
        raise Inapplicable(
            "An equal budget needs the cost of both methods in passes; "
            f"{type(objective).__name__} does not state its own, or its attack does not. Give it "
            "`passes`, or set the number of epochs yourself."
        )
    return found
