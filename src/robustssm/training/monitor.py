"""Figures taken between epochs on fixed subsets, so that robust overfitting shows as it happens."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.attacks.access import frozen
from robustssm.attacks.base import Attack
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import settings
from robustssm.core.modes import mode
from robustssm.core.placement import Placement
from robustssm.core.rng import Noise


@settings
class Monitor:
    """Clean and adversarial loss and accuracy between epochs, on the first examples of a split."""

    attack: Attack = PGD(steps=10)
    train: Annotated[int, Field(ge=0)] = 256
    """Training examples, without augmentation; 0 for none."""
    validation: Annotated[int, Field(ge=0)] = 2000
    test: Annotated[int, Field(ge=0)] = 0
    """Test examples: for curves only, unless the paper's rule of selection is asked for."""
    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between measurements; the last epoch is always measured."""

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether to measure after `epoch` of `epochs` (counted from 1)."""
        return epoch % self.every == 0 or epoch == epochs

    def measure(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
        batch_size: int,
        placement: Placement,
    ) -> dict[str, float]:
        """Loss, accuracy, adversarial_loss and adversarial_accuracy, all over all examples.

        Args:
            model: Switched to eval mode for the measurement, and back.
            x: Inputs (n, ...) on the device.
            y: Classes (n,).
            threat: What the attack may do.
            noise: One stream per example.
            batch_size: Examples at a time; does not change the outcome.
            placement: Device and precision.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=x.device)
        with (
            mode(model, training=False),
            frozen(model),
            torch.no_grad(),
            placement.autocast(),
        ):
            for rows in torch.arange(len(y)).split(batch_size):
                at = slice(int(rows[0]), int(rows[-1]) + 1)
                shifted = attack_in_parts(
                    self.attack, model, x[at], y[at], threat=threat, noise=noise.select(rows)
                )
                sums += torch.cat([_sums(model(x[at]), y[at]), _sums(model(shifted), y[at])])
        names = ("loss", "accuracy", "adversarial_loss", "adversarial_accuracy")
        return dict(zip(names, (sums / len(y)).tolist(), strict=True))


def _sums(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " 2"]:
    loss = F.cross_entropy(logits.float(), y, reduction="sum")
    return torch.stack([loss, (logits.argmax(-1) == y).sum().to(loss)]).double()
