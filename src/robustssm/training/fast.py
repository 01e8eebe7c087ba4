"""Fast adversarial training (wong2020fast): one step from a random start, and its alarm."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
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

_NEW = 0.5  # weight of a new check in the figures that the alarm compares


@register("fast")
@settings
class Fast(Objective):
    """CE(f(x_adv), y) with x_adv by one step of `step_size` eps from a uniform start.

    The loss is that of PGD training with `FGSM(start="uniform", step_size=1.25)`, bit for bit. Such
    training can overfit catastrophically: within an epoch the model learns to be right at the very
    points that one step reaches, and loses all robustness elsewhere in the threat set. So every
    `check_every` batches the alarm compares, on the first `check_examples` of the batch and in eval
    mode, the accuracy at those points with that under the attack `check`. Both are smoothed over
    checks (half the newest, half the rest); once the first exceeds the second by over `gap`, a
    RuntimeWarning says so, once per run. On a GPU every check waits for the device.

    Source: wong2020fast, algorithm 3, which also names catastrophic overfitting.
    """

    threat: Threat
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.25
    """Fraction of eps."""
    start: Literal["uniform", "none"] = "uniform"
    """"none" is training by FGSM, which overfits far sooner."""
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""
    check: Attack = PGD(steps=4, step_size=0.5)
    """An attack of smaller steps that still crosses the threat set. Two such steps are too few: on
    the digits at eps 0.2, training by FGSM left a model right on 77 % of its own points and on 68 %
    under two steps, but on 35 % of the test examples under PGD-20."""
    check_every: Annotated[int, Field(ge=1)] = 20
    """Batches from one check to the next; the first batch is checked."""
    check_examples: Annotated[int, Field(ge=1)] = 64
    gap: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Difference of accuracies above which the alarm goes off; 1 for never."""

    @property
    def attack(self) -> FGSM:
        """The attack of training."""
        return FGSM(start=self.start, step_size=self.step_size)

    def passes(self, num_classes: int) -> Passes:
        """Two of each."""
        one = self.attack.passes(num_classes)
        return Passes(one.forward + 1, one.backward + 1)

    def at(self, progress: float) -> "Fast":
        """This objective with the eps in force at `progress` in [0, 1] through training."""
        threat = ramped(self.threat, self.eps_warmup, progress)
        return dataclasses.replace(self, threat=threat, eps_warmup=0.0)

    def memory(self, example: Float[Tensor, "batch ..."], *, batch_size: int) -> Memory:
        """The alarm's: batches seen, the two figures, and whether it has warned."""
        del batch_size
        zero = torch.zeros((), device=example.device)
        names = ("fgsm_accuracy", "check_accuracy", "batches", "warned")
        return {name: zero.clone() for name in names}

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields once.

        Parts: adversarial_loss, adversarial_accuracy; and those of the latest check, smoothed:
        fgsm_accuracy, check_accuracy, and overfitting, 1 while their difference exceeds `gap`.
        """
        with mode(model, training=False):
            x_adv = attack_in_parts(self.attack, model, x, y, threat=self.threat, noise=noise)
            if int(memory["batches"]) % self.check_every == 0:
                rows = slice(self.check_examples)
                self._look(model, x[rows], x_adv[rows], y[rows], memory=memory, noise=noise)
        memory["batches"] += 1
        logits = model(x_adv)
        loss = F.cross_entropy(logits, y)
        parts = {
            "adversarial_loss": loss.detach(),
            "adversarial_accuracy": accuracy(logits, y),
            "fgsm_accuracy": memory["fgsm_accuracy"].clone(),
            "check_accuracy": memory["check_accuracy"].clone(),
            "overfitting": (_difference(memory) > self.gap).float(),
        }
        yield Update(loss=loss, parts=parts)

    def _look(
        self,
        model: Classifier,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        memory: Memory,
        noise: Noise,
    ) -> None:
        """Takes a check into memory, and warns."""
        some = noise.select(torch.arange(len(x), device=x.device)).fork("check")
        other = attack_in_parts(self.check, model, x, y, threat=self.threat, noise=some)
        new = 1.0 if not memory["batches"] else _NEW
        with torch.no_grad():
            for name, points in (("fgsm_accuracy", x_adv), ("check_accuracy", other)):
                memory[name].lerp_(accuracy(model(points), y), new)
        if memory["warned"] or not _difference(memory) > self.gap:
            return
        memory["warned"].fill_(1)
        warnings.warn(
            "Fast training should leave a model as right under an attack of smaller steps as at "
            "the points it trains on; now it is right on "
            f"{float(memory['fgsm_accuracy']):.0%} of its own points and on "
            f"{float(memory['check_accuracy']):.0%} under {self.check.label}: catastrophic "
            "overfitting. Lower eps, step_size or the learning rate, stop early, or use "
            "PGDTraining or Free.",
            RuntimeWarning,
            stacklevel=2,
        )

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms, with and without a random start."""
        return (
            cls(threat=Threat(eps=0.1), eps_warmup=0.5, check_every=2),
            cls(threat=Threat(norm="l2", eps=0.5), start="none", check_every=1, check_examples=3),
        )


def _difference(memory: Memory) -> Tensor:
    return memory["fgsm_accuracy"] - memory["check_accuracy"]
