"""MART (wang2020improving): misclassified examples weigh more in the robust term."""

import dataclasses
from collections.abc import Iterator
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
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier
from robustssm.ops import divergence
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.pgd_training import with_attack
from robustssm.training.standard import accuracy
from robustssm.training.warmup import EpsWarmup, ramped


@register("mart")
@settings
class Mart(Objective):
    """BCE(f(x_adv), y) + beta KL(p(x) || p(x_adv)) (1 - p(x)[y]), averaged over the batch.

    BCE is the boosted cross-entropy, -log p[y] - log(1 - max_{c != y} p[c]). Gradients flow through
    all three factors; x_adv is found on the model in eval mode. At beta = 0 this is training on the
    boosted cross-entropy of x_adv.

    Source: wang2020improving, section 3 and algorithm 1, with lambda called beta as in its code;
    without the constants below 1e-4 that its code adds inside logarithms.
    """

    threat: Threat
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    attack: Attack = PGD(start="normal", keep="last")
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""

    def passes(self, num_classes: int) -> Passes | None:
        """The attack's, and one each for x_adv and, unless beta = 0, for x."""
        return with_attack(self.attack, 2 if self.beta > 0 else 1, num_classes)

    def at(self, progress: float) -> "Mart":
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
        """Yields once; parts: boosted_loss, weighted_kl, accuracy, adversarial_accuracy."""
        del memory
        with mode(model, training=False):
            x_adv = attack_in_parts(self.attack, model, x, y, threat=self.threat, noise=noise)
        shifted = model(x_adv)
        loss = boosted = boosted_cross_entropy(shifted, y).mean()
        if self.beta > 0:
            clean = model(x)
            weighted = weighted_kl(clean, shifted, y).mean()
            loss = boosted + self.beta * weighted
        else:
            # A term of weight zero is measured only, without a trace in statistics or dropout.
            with mode(model, training=False), torch.no_grad():
                clean = model(x)
                weighted = weighted_kl(clean, model(x_adv), y).mean()
        parts = {
            "boosted_loss": boosted.detach(),
            "weighted_kl": weighted.detach(),
            "accuracy": accuracy(clean, y),
            "adversarial_accuracy": accuracy(shifted, y),
        }
        yield Update(loss=loss, parts=parts)

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms, and beta = 0."""
        attack = PGD(steps=2, start="normal", keep="last")
        return (
            cls(threat=Threat(eps=0.1), attack=attack, eps_warmup=0.5),
            cls(threat=Threat(norm="l2", eps=0.5), attack=attack, beta=1.0),
            cls(threat=Threat(eps=0.1), attack=attack, beta=0.0),
        )


def boosted_cross_entropy(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-log p[y] - log(1 - max_{c != y} p[c]), p = softmax(logits), per example.

    1 - p[c] is summed from the other classes, so that no digits cancel near p[c] = 1.

    Args:
        logits: At least 2 classes.
        y: True classes.
    """
    rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -torch.inf).logsumexp(1)
    return F.cross_entropy(logits, y, reduction="none") + logits.logsumexp(1) - others


def weighted_kl(
    clean: Float[Tensor, "batch classes"],
    shifted: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """KL(p || q) (1 - p[y]), p = softmax(clean), q = softmax(shifted), per example.

    Args:
        clean: Logits of the inputs.
        shifted: Logits of the perturbed inputs.
        y: True classes.
    """
    others = clean.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return divergence.kl(clean, shifted) * (others - clean.logsumexp(1)).exp()
