"""CIFAR-10 by the paper's text (`cifar10`) and as its released code ran (`cifar10_released`)."""

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.pgd_released import PGDReleased
from robustssm.attacks.threat import Threat
from robustssm.data.augment import Augmentation
from robustssm.data.cifar10 import CIFAR10
from robustssm.experiment import Experiment
from robustssm.models.presets import paper_v1, released_code
from robustssm.recipes import Cell
from robustssm.recipes.methods import objective, selection
from robustssm.training.monitor import Monitor
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule

THREAT = Threat(norm="linf", eps=0.031)
STEP = 0.007 / 0.031  # the published step of 0.007, as a fraction of eps


def experiment(cell: Cell) -> Experiment:
    """AdamW 1e-3, weight decay 2e-4, cosine per epoch, 180 epochs, batch 256, crops and flips."""
    released = cell.tier == "cifar10_released"
    attack: Attack = PGD(steps=10, step_size=STEP, keep="last")
    evaluation: tuple[Attack, ...] = (
        PGD(steps=10, step_size=STEP),
        PGD(steps=50, step_size=STEP, restarts=5),
    )
    if released:
        attack = PGDReleased(steps=10, step_size=STEP)
        evaluation = (attack, *evaluation)
    preset = released_code if released else paper_v1
    return Experiment(
        dataset=CIFAR10(),
        model=preset(cell.structure, "cifar10", ads=cell.ads),
        objective=objective(
            cell.method,
            threat=THREAT,
            attack=attack,
            kl_attack=PGD(steps=10, step_size=STEP, keep="last", loss="kl", start="normal"),
            beta=6.0,
        ),
        threat=THREAT,
        attacks=evaluation,
        optimizer=AdamW(lr=1e-3, weight_decay=2e-4),
        schedule=Schedule(per="epoch"),
        augmentation=Augmentation(crop_padding=4, flip=True),
        monitor=Monitor(attack=attack, train=1000, validation=2000, test=1000),
        selection=selection(cell.method),
        epochs=180,
        batch_size=256,
        clip_norm=None if released else 1.0,
    )
