"""What every attack is: a search of a threat set by one who sees a function, not a network."""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.threat import Threat
from robustssm.core.config import Named
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn


class Attack(Named, ABC):
    """Searches a threat set for misclassified inputs. Settings only: no model, no state."""

    kind: ClassVar[str] = "attack"

    @property
    def label(self) -> str:
        """How tables and records call this attack: its name and its strength ("pgd-50x5")."""
        return self.name

    @abstractmethod
    def perturb(
        self,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Returns one candidate per example, in the units of `x`."""

    @final
    def __call__(
        self,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Runs `perturb`, detaches, and projects onto `threat`, so that no attack can cheat.

        Works inside `torch.no_grad` and `torch.inference_mode`; gradients of parameters, modes,
        buffers and the global random state stay as they were.

        Args:
            logits: Maps (batch, ...) to unnormalised scores (batch, classes). The caller has
                already chosen train or eval mode; attacks never change it.
            x: Clean inputs (batch, ...), within `threat.bounds`.
            y: True classes (batch,).
            threat: Norm, radius and input range, all in the units of `x`.
            noise: One stream per example, so that batching does not change the outcome.

        Raises:
            ValueError: If `x` leaves `threat.bounds` or is not finite.
        """
        threat.check(x, attack=type(self).__name__)
        with torch.inference_mode(False), torch.enable_grad():
            clean = x.detach().clone()
            candidate = self.perturb(logits, clean, y, threat=threat, noise=noise).detach()
            return threat.project(candidate, clean)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Settings that the contract tests should try; the defaults if not overridden."""
        return (cls(),)
