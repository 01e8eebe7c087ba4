"""What training costs, in passes through the model, and how many epochs cost the same.

A pass is forward or backward, of one example, through the whole network; both count alike. Passes
through the first layer alone (YOPO), updates of the optimiser and measurements are left out.
"""

import math

from robustssm.core.errors import Inapplicable
from robustssm.training.objective import Objective


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
    price, paid = (_total(each, num_classes) for each in (objective, reference))
    return max(1, epochs * paid // price)


def divided_epochs(epochs: int, objective: Objective) -> int:
    """Epochs as the method's source counts them: divided by its replays, rounded up.

    Args:
        epochs: Of a method that sees each batch once an epoch, at least 1.
        objective: To be trained.
    """
    return math.ceil(epochs / objective.epochs_divisor)


def _total(objective: Objective, num_classes: int) -> int:
    found = objective.passes(num_classes)
    if found is None:
        raise Inapplicable(
            "An equal budget needs the cost of both methods in passes; "
            f"{type(objective).__name__} does not state its own, or its attack does not. Give it "
            "`passes`, or set the number of epochs yourself."
        )
    return found.forward + found.backward
