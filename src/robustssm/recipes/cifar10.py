"""CIFAR-10 by the paper's text (`cifar10`) and as its released code ran (`cifar10_released`)."""

from robustssm.attacks.threat import Threat
from robustssm.data.augment import Augmentation
from robustssm.data.cifar10 import CIFAR10
from robustssm.experiment import Experiment
from robustssm.recipes import Cell
from robustssm.recipes.published import published

THREAT = Threat(norm="linf", eps=0.031)
STEP = 0.007 / 0.031  # the published step of 0.007, as a fraction of eps


def experiment(cell: Cell) -> Experiment:
    """The experiment of a cell of either tier: 180 epochs, crops and flips."""
    return published(
        cell,
        "cifar10",
        dataset=CIFAR10(),
        threat=THREAT,
        step=STEP,
        beta=6.0,
        epochs=180,
        augmentation=Augmentation(crop_padding=4, flip=True),
    )
