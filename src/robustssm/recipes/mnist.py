"""MNIST: the paper's protocol (`mnist`, `mnist_released`) and a tier for CPUs (`mnist14`).

Correct PGD training at eps 0.3 can stall at chance from scratch, so its recipes raise eps linearly
over the first part of training (`eps_warmup`). The released code's attack is weaker and had no
warm-up.
"""

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.data.augment import Augmentation
from robustssm.data.mnist import MNIST
from robustssm.experiment import Experiment
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.controls import control
from robustssm.models.presets import modern
from robustssm.recipes import Ads, Cell, Structure
from robustssm.recipes.methods import objective, selection
from robustssm.recipes.published import published
from robustssm.training.monitor import Monitor
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule

THREAT = Threat(norm="linf", eps=0.3)
STEP = 0.04 / 0.3  # the published step of 0.04, as a fraction of eps


def experiment(cell: Cell) -> Experiment:
    """The experiment of a cell of any of the three tiers."""
    if cell.tier == "mnist14":
        return _small(cell)
    return published(
        cell,
        "mnist",
        dataset=MNIST(),
        threat=THREAT,
        step=STEP,
        beta=1.0,
        epochs=100,
        augmentation=Augmentation(),
        eps_warmup=0.3,
    )


def _small(cell: Cell) -> Experiment:
    """14x14 pixels, width 64, two layers; the published eps, step and number of steps.

    A CPU sees few epochs, hence the high learning rate (S5, 3 epochs of 10,000 images: 95 % clean
    at 8e-3, 77 % at 2e-3) and a rise of eps over the first half, for TRADES as well.
    """
    attack = PGD(steps=10, step_size=STEP, keep="last")
    return Experiment(
        dataset=MNIST(pool=2),
        model=control(cell.control, _modern) if cell.control else _modern(cell.structure, cell.ads),
        objective=objective(
            cell.method,
            threat=THREAT,
            attack=attack,
            kl_attack=PGD(steps=10, step_size=STEP, keep="last", loss="kl", start="normal"),
            beta=1.0,
            eps_warmup=0.5,
        ),
        threat=THREAT,
        attacks=(PGD(steps=10, step_size=STEP), PGD(steps=50, step_size=STEP, restarts=2)),
        optimizer=AdamW(lr=8e-3, weight_decay=2e-4),
        schedule=Schedule(warmup=0.05),
        monitor=Monitor(attack=attack, train=500, validation=500, test=500),
        selection=selection(cell.method),
        epochs=20,
        batch_size=128,
        evaluation_examples=1000,
    )


def _modern(structure: Structure, ads: Ads | None = None) -> SequenceClassifierConfig:
    return modern(structure, d_model=64, num_layers=2, ads=ads)
