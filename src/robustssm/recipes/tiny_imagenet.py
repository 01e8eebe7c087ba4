"""Tiny-ImageNet in the paper's protocol (`tiny_imagenet`, `tiny_imagenet_released`).

The paper's second version used the first 50 classes; its code before release read every model's
input in 4x4 patches, L = 256 (as single pixels, L = 4096, Mega's attention would not fit into the
memory that the paper states). Both tiers do so. In that code a view after the patches' linear map
scrambled the features as well; here patches are in true order in both tiers.
"""

from dataclasses import replace

from robustssm.attacks.threat import Threat
from robustssm.data.augment import Augmentation
from robustssm.data.tiny_imagenet import TinyImageNet
from robustssm.experiment import Experiment
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.tokens import Patches
from robustssm.recipes import Cell
from robustssm.recipes.published import published

THREAT = Threat(norm="linf", eps=0.031)
STEP = 0.007 / 0.031  # the published step of 0.007, as a fraction of eps


def experiment(cell: Cell) -> Experiment:
    """The experiment of a cell of either tier: 180 epochs, crops and flips, patches of 4."""
    whole = published(
        cell,
        "tiny_imagenet",
        dataset=TinyImageNet(classes=50),
        threat=THREAT,
        step=STEP,
        beta=6.0,
        epochs=180,
        augmentation=Augmentation(crop_padding=4, flip=True),
    )
    assert isinstance(whole.model, SequenceClassifierConfig), "both presets make these"
    return replace(whole, model=replace(whole.model, tokens=Patches(side=4)))
