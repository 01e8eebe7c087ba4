"""What training costs, in passes through the model, and how many epochs cost the same.

A pass is forward or backward, of one example, through the whole network; both count alike. Passes
through the first layer alone (YOPO), updates of the optimiser and measurements are left out.
"""

import math

from robustssm.attacks.base import Attack, Passes
from robustssm.core.errors import Inapplicable
from robustssm.training.objective import Objective
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades


def passes_of(objective: Objective, num_classes: int) -> Passes | None:
    """Passes per example and epoch at full strength, at most; None if nobody knows.

    PGD training with 10 steps takes 11 forward and 11 backward. TRADES takes a forward pass less
    than said here where the model is the same in train and eval mode.

    Args:
        objective: Any.
        num_classes: Of the model.
    """
    if isinstance(objective, Standard):
        return Passes(1, 1)
    if isinstance(objective, PGDTraining):
        return _with_attack(objective.attack, 1, num_classes)
    if isinstance(objective, Trades):
        return _with_attack(objective.attack, 2 if objective.beta > 0 else 1, num_classes)
    return objective.passes(num_classes)


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


def _with_attack(attack: Attack, own: int, num_classes: int) -> Passes | None:
    of_attack = attack.passes(num_classes)
    return of_attack and Passes(of_attack.forward + own, of_attack.backward + own)


def _total(objective: Objective, num_classes: int) -> int:
    found = passes_of(objective, num_classes)
    if found is None:
        raise Inapplicable(
            "An equal budget needs the cost of both methods in passes; "
            f"{type(objective).__name__} does not state its own, or its attack does not. Give it "
            "`passes`, or set the number of epochs yourself."
        )
    return found.forward + found.backward
