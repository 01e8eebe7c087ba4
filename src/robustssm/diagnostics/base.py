"""What every probe is: settings that measure one thing of a model and leave it as it was."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.config import Named, to_dict
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Inputs, Labels
from robustssm.records import ProbeResult


class Subject:
    """A model, the examples at which it is looked, and what an attack makes of these.

    All probes of one subject share its adversarial examples, which are made when first asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Inputs,
        y: Labels,
        *,
        threat: Threat,
        attack: Attack,
        noise: Noise,
    ):
        """Names them; nothing is computed yet.

        Args:
            model: Inputs to logits.
            x: Clean inputs (batch, ...), within `threat.bounds`.
            y: True classes (batch,).
            threat: What the attack may do.
            attack: Makes the adversarial examples.
            noise: One stream per example, for the attack; probes fork it for their own draws.
        """
        self.model, self.x, self.y = model, x, y
        self.threat, self.attack, self.noise = threat, attack, noise
        self._x_adv: Inputs | None = None

    @property
    def x_adv(self) -> Inputs:
        """Adversarial examples, in eval mode, (batch, ...)."""
        if self._x_adv is None:
            with mode(self.model, training=False):
                self._x_adv = self.attack(
                    self.model, self.x, self.y, threat=self.threat, noise=self.noise
                )
        return self._x_adv

    def settings(self) -> dict[str, Any]:
        """What was looked at, for the record."""
        return {
            "threat": to_dict(self.threat),
            "attack": to_dict(self.attack),
            "examples": len(self.x),
        }


class Probe(Named, ABC):
    """Measures one thing of a model and leaves parameters, mode, hooks, gradients and random state.

    `testing.check_probe` holds every registered probe to this, and its bounds to what they bound.
    """

    kind: ClassVar[str] = "probe"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    """The splits of the data that it compares."""
    checkpoints: ClassVar[tuple[str, ...]] = ("best",)
    """The states of a run that it compares, of "initial", "best" and "last"."""

    @abstractmethod
    def measure(self, subject: Subject) -> ProbeResult:
        """Returns named quantities, each with its axes, its unit and the claim it bears on.

        Raises:
            Inapplicable: If no layer is covered by the theory; names the layers found.
        """

    @classmethod
    def samples(cls) -> tuple["Probe", ...]:
        """Settings that the contract tests should try; the defaults if not overridden."""
        return (cls(),)

    def record(self, subject: Subject) -> Mapping[str, Any]:
        """Settings of the probe and of what it looked at, for its result."""
        return {"probe": to_dict(self), **subject.settings()}


def numbers(values: torch.Tensor) -> tuple[float, ...]:
    """A tensor's entries as floats, the last axis fastest: what `Quantity(values=...)` takes."""
    return tuple(values.detach().double().flatten().tolist())
