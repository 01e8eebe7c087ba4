"""Adversarial training (madry2018towards): the cross-entropy of the inputs that an attack finds."""

import dataclasses
from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.standard import accuracy
from robustssm.training.warmup import EpsWarmup, ramped


@register("pgd_training")
@settings
class PGDTraining(Objective):
    """CE(f(x_adv), y), averaged over the batch; x_adv by `attack` on the model in eval mode.

    There is no clean term. At eps = 0 this is standard training, bit for bit.

    Source: madry2018towards, equation 2.1.
    """

    threat: Threat
    attack: Attack = PGD(keep="last")
    """Published runs train on the last iterate, not on the best."""
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""

    def passes(self, num_classes: int) -> Passes | None:
        """Those of the attack, and one of each at what it found."""
        return with_attack(self.attack, 1, num_classes)

    def at(self, progress: float) -> "PGDTraining":
        """This objective with the eps in force at `progress` in [0, 1] through training."""
        threat = ramped(self.threat, self.eps_warmup, progress)
        return dataclasses.replace(self, threat=threat, eps_warmup=0.0)

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields once; parts: adversarial_loss, adversarial_accuracy."""
        del memory
        with mode(model, training=False):
            x_adv = attack_in_parts(self.attack, model, x, y, threat=self.threat, noise=noise)
        logits = model(x_adv)
        loss = F.cross_entropy(logits, y)
        parts = {"adversarial_loss": loss.detach(), "adversarial_accuracy": accuracy(logits, y)}
        yield Update(loss=loss, parts=parts)

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms, and the fast variant of one step (wong2020fast)."""
        return (
            cls(threat=Threat(eps=0.1), attack=PGD(steps=2, keep="last"), eps_warmup=0.5),
            cls(threat=Threat(norm="l2", eps=0.5), attack=PGD(steps=2)),
            cls(threat=Threat(eps=0.1), attack=FGSM(start="uniform", step_size=1.25)),
        )


def with_attack(attack: Attack, own: int, num_classes: int) -> Passes | None:
    """Passes of an attack and `own` more of each; None if the attack does not state its own."""
    of_attack = attack.passes(num_classes)
    return of_attack and Passes(of_attack.forward + own, of_attack.backward + own)
