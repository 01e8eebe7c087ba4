"""The paper's protocol (qi2024exploring, table 4), and the same as its released code ran it."""

from typing import Literal

from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.pgd_released import PGDReleased
from robustssm.attacks.threat import Threat
from robustssm.data.augment import Augmentation
from robustssm.data.base import Dataset
from robustssm.experiment import Experiment
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.controls import control
from robustssm.models.presets import paper_v1, released_code
from robustssm.recipes import Ads, Cell, Structure
from robustssm.recipes.methods import objective, selection
from robustssm.training.cost import divided_epochs
from robustssm.training.monitor import Monitor
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule


def published(
    cell: Cell,
    preset: Literal["mnist", "cifar10", "tiny_imagenet"],
    *,
    dataset: Dataset,
    threat: Threat,
    step: float,
    beta: float,
    epochs: int,
    augmentation: Augmentation,
    eps_warmup: float = 0.0,
) -> Experiment:
    """AdamW 1e-3, weight decay 2e-4, cosine per epoch, batch 256, PGD-10.

    A tier called `..._released` has the code's model and token order, trains on its PGD, does not
    clip gradients, and is judged by that PGD and by the correct one.

    Args:
        cell: Which structure, adaptive scaling and method.
        preset: Sizes of the model.
        dataset: The data.
        threat: Of training and evaluation.
        step: Step of every PGD, as a fraction of eps.
        beta: Weight of the robust term of TRADES.
        epochs: Passes over the data; free training divides them by its replays, as its source says
            (the released code did not).
        augmentation: Of training inputs.
        eps_warmup: Share of PGD training over which eps rises; the released code had none.
    """
    released = cell.tier.endswith("_released")
    attack: Attack = PGD(steps=10, step_size=step, keep="last")
    evaluation: tuple[Attack, ...] = (
        PGD(steps=10, step_size=step),
        PGD(steps=50, step_size=step, restarts=5),
    )
    if released:
        attack = PGDReleased(steps=10, step_size=step)
        evaluation = (attack, *evaluation)
    make = released_code if released else paper_v1
    # TRADES learns without: its clean term goes on whatever the attack does.
    warmed = cell.method not in ("standard", "trades", "jacobian") and not released
    method = objective(
        cell.method,
        threat=threat,
        attack=attack,
        kl_attack=PGD(steps=10, step_size=step, keep="last", loss="kl", start="normal"),
        beta=beta,
        eps_warmup=eps_warmup if warmed else 0.0,
        released=released,
    )

    def model(structure: Structure, ads: Ads | None = None) -> SequenceClassifierConfig:
        return make(structure, preset, ads=ads)

    return Experiment(
        dataset=dataset,
        model=control(cell.control, model) if cell.control else model(cell.structure, cell.ads),
        objective=method,
        threat=threat,
        attacks=evaluation,
        optimizer=AdamW(lr=1e-3, weight_decay=2e-4),
        schedule=Schedule(per="epoch"),
        augmentation=augmentation,
        monitor=Monitor(attack=attack, train=1000, validation=2000, test=1000),
        selection=selection(cell.method),
        epochs=divided_epochs(epochs, method),
        batch_size=256,
        clip_norm=None if released else 1.0,
    )
