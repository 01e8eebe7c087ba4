"""TRADES (zhang2019trades): clean accuracy weighed against predictions that an attack moves."""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.modes import mode, same_in_both_modes
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.ops import divergence
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.pgd_training import with_attack
from robustssm.training.schedule import Schedule
from robustssm.training.standard import accuracy
from robustssm.training.warmup import EpsWarmup, ramped


@register("trades")
@settings
class Trades(Objective):
    """CE(f(x), y) + beta KL(p(x) || p(x_adv)), averaged over the batch, p = softmax(f).

    x_adv maximises the divergence from the clean prediction, on the model in eval mode; gradients
    of the loss flow through both predictions, in the model's own mode. At beta = 0 this is
    standard training, bit for bit, running statistics and random state included.

    Source: zhang2019trades, equation 5 and algorithm 1, with 1 / lambda called beta as in its code.
    """

    threat: Threat
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 6.0
    attack: Attack = PGD(loss="kl", start="normal", keep="last")
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""
    beta_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training over which beta rises linearly from 0."""

    def passes(self, num_classes: int) -> Passes | None:
        """Those of the attack, and one of each at both points; at beta = 0 at the clean one alone.

        A forward pass less where the model is the same function in train and eval mode.
        """
        return with_attack(self.attack, 2 if self.beta > 0 else 1, num_classes)

    def at(self, progress: float) -> "Trades":
        """This objective with the eps and beta in force at `progress` in [0, 1]."""
        factor = Schedule(shape="constant", warmup=self.beta_warmup).factor(progress)
        return dataclasses.replace(
            self,
            threat=ramped(self.threat, self.eps_warmup, progress),
            beta=self.beta * factor,
            eps_warmup=0.0,
            beta_warmup=0.0,
        )

    def updates(
        self,
        model: Classifier,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
    ) -> Iterator[Update]:
        """Yields once; parts: clean_loss, kl, accuracy, adversarial_accuracy."""
        del memory
        with _shared(model):
            # One clean forward pass serves the attack and the loss, where no mode changes it.
            clean = model(x) if same_in_both_modes(model) else None
            known = None if clean is None else clean.detach()
            with mode(model, training=False):
                x_adv = attack_in_parts(
                    self.attack, model, x, y, threat=self.threat, noise=noise, clean=known
                )
            clean = model(x) if clean is None else clean
            loss = clean_loss = F.cross_entropy(clean, y)
            if self.beta > 0:
                shifted = model(x_adv)
                kl = divergence.kl(clean, shifted).mean()
                loss = clean_loss + self.beta * kl
            else:
                # A term of weight zero is measured only: a forward pass in train mode would still
                # move running statistics and the random state of dropout.
                with mode(model, training=False), torch.no_grad():
                    shifted = model(x_adv)
                    kl = divergence.kl(model(x), shifted).mean()
        parts = {
            "clean_loss": clean_loss.detach(),
            "kl": kl.detach(),
            "accuracy": accuracy(clean, y),
            "adversarial_accuracy": accuracy(shifted, y),
        }
        yield Update(loss=loss, parts=parts)

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms and warm-ups."""
        kl = PGD(steps=2, loss="kl", start="normal", keep="last")
        return (
            cls(threat=Threat(eps=0.1), attack=kl, eps_warmup=0.5, beta_warmup=0.5),
            cls(threat=Threat(norm="l2", eps=0.5), attack=kl, beta=1.0),
            cls(threat=Threat(eps=0.1), attack=PGD(steps=2), beta=0.0),
        )


def _shared(model: Classifier) -> AbstractContextManager[object]:
    """The model's own `shared` context if it has one (`core.types.Shareable`)."""
    share = getattr(model, "shared", None)
    return nullcontext() if share is None else share()
