"""What an experiment costs, and how many epochs of it a budget pays for."""

from pathlib import Path

from robustssm.core.errors import Inapplicable
from robustssm.experiment.settings import Experiment, read_data
from robustssm.training.cost import Cost, affordable, cost


def price(experiment: Experiment, *, data_dir: Path | None = None) -> Cost:
    """What all epochs of an experiment cost, per training example.

    Args:
        experiment: Its model does not count, only how often an example passes through it.
        data_dir: Where data files are looked for, should the cost depend on the number of classes.

    Raises:
        Inapplicable: If the objective does not state its cost.
    """
    classes = _num_classes(experiment, data_dir)
    return cost(experiment.epochs, experiment.objective, num_classes=classes)


def budgeted(experiment: Experiment, passes: float, *, data_dir: Path | None = None) -> int:
    """The most epochs of an experiment within a budget: `override(experiment, {"epochs": ...})`.

    Equal budgets cost less than one epoch apart. The price is that at full strength: schedules
    that leave a part of a method out for some epochs make those cheaper.

    Args:
        experiment: Its own epochs do not count.
        passes: Forward/backward equivalents per training example; 1 is one forward and one
            backward pass, an epoch of standard training.
        data_dir: As of `price`.

    Raises:
        Inapplicable: If the objective does not state its cost.
        ValueError: If the budget does not pay for one epoch.
    """
    classes = _num_classes(experiment, data_dir)
    return affordable(passes, experiment.objective, num_classes=classes)


def on_record(experiment: Experiment, *, num_classes: int) -> dict[str, float] | None:
    """The cost as a run's recipe.json holds it; None if the objective does not state it.

    Args:
        experiment: Of the run.
        num_classes: Of its data.
    """
    try:
        return cost(experiment.epochs, experiment.objective, num_classes=num_classes).to_dict()
    except Inapplicable:
        return None


def _num_classes(experiment: Experiment, data_dir: Path | None) -> int:
    """The number of classes, read from the data only where the cost depends on it."""
    if experiment.objective.passes(2) == experiment.objective.passes(1000):
        return 2
    return read_data(experiment, data_dir).num_classes
