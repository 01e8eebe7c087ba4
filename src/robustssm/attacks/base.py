"""What every attack is: a search of a threat set by one who sees a function, not a network."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from robustssm.attacks.access import Access, frozen
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found
from robustssm.attacks.threat import Threat
from robustssm.core.config import Named
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn
from robustssm.ops import divergence


class Passes(NamedTuple):
    """Passes through the model per example, at most."""

    forward: int
    backward: int


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
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."] | Found:
        """Returns one candidate per example, in the coordinates of `region`.

        Args:
            model: Maps points (batch, ...) to logits; `climb` gives gradients, `logits` none.
            x: Clean inputs in the region's coordinates: `region.x`.
            y: True classes (batch,).
            region: Where candidates may lie; `select` it together with rows of `x`.
            noise: One stream per example, or one for the batch; `select` it as well.
        """

    def passes(self, num_classes: int) -> Passes | None:
        """Passes through a model of so many classes per example, at most; None if unknown."""
        return None

    @final
    def __call__(
        self,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
        mask: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """Runs `perturb`, detaches, and projects onto `threat`, so that no attack can cheat.

        Works inside `torch.no_grad` and `torch.inference_mode`; gradients of parameters, modes,
        buffers and the global random state stay as they were.

        Args:
            logits: Maps (batch, ...) to unnormalised scores (batch, classes). The caller has
                already chosen train or eval mode; attacks never change it. An `Access` keeps its
                limits and counts.
            x: Clean inputs (batch, ...), within `threat.bounds`.
            y: True classes (batch,).
            threat: Norm, radius and input range, all in the units of `x`.
            noise: One stream per example, so that batching does not change the outcome.
            mask: What may be touched, (batch, ...) like `x` or (batch, positions); None for all.

        Raises:
            ValueError: If `x` leaves `threat.bounds` or is not finite.
            Inapplicable: If the attack cannot search this threat set.
        """
        return self.search(logits, x, y, threat=threat, noise=noise, mask=mask).points

    @final
    def search(
        self,
        logits: LogitsFn,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        threat: Threat,
        noise: Noise,
        mask: Shaped[Tensor, "..."] | None = None,
        clean: Float[Tensor, "batch classes"] | None = None,
    ) -> "Candidates":
        """As the call, and says which part of the search each candidate is from.

        Arguments as those of the call; `clean` are the logits of `x`, if the caller has them: an
        attack that needs them then saves a forward pass.
        """
        threat.check(x, attack=type(self).__name__)
        with torch.inference_mode(False), torch.enable_grad(), frozen(logits):
            model, inputs = Access.of(logits), x.detach().clone()
            if clean is not None:
                model = model.knowing(inputs, clean.detach().clone())
            labels = y.clone()  # those made in inference mode cannot be saved for a backward pass
            allowed = None if mask is None else mask.clone()
            regions = threat.regions(inputs, mask=allowed)
            found = self._within(model, inputs, labels, regions[0], threat, noise)
            if len(regions) > 1:
                found = self._anywhere(model, inputs, labels, regions, found, threat, noise)
            return found

    def _within(
        self, model: Access, x: Tensor, y: Tensor, region: Region, threat: Threat, noise: Noise
    ) -> "Candidates":
        points = region.x if not region.plain else x
        if not region.plain:
            model = model.after(region.inputs)
        result = self.perturb(model, points, y, region=region, noise=noise)
        part = result.part if isinstance(result, Found) else None
        found = (result.points if isinstance(result, Found) else result).detach()
        unknown = torch.full((len(x),), -1, device=x.device)
        return Candidates(
            threat.restore(region.project(found), region, x), unknown if part is None else part
        )

    def _anywhere(
        self,
        model: Access,
        x: Tensor,
        y: Tensor,
        regions: tuple[Region, ...],
        first: "Candidates",
        threat: Threat,
        noise: Noise,
    ) -> "Candidates":
        """One window after the other, on the examples that none before has fooled."""
        points, part = first.points.clone(), first.part.clone()
        left = torch.arange(len(x), device=x.device)
        for number in range(1, len(regions)):
            wrong = divergence.wrong(model.logits(points[left]), y[left])
            left = left[~wrong]
            if not len(left):
                break
            region, stream = regions[number].select(left), noise.select(left)
            found = self._within(
                model, x[left], y[left], region, threat, stream.fork("window", number)
            )
            points[left], part[left] = found.points, found.part
        return Candidates(points, part)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Settings that the contract tests should try; the defaults if not overridden."""
        return (cls(),)


class Candidates(NamedTuple):
    """What an attack found: one point per example, in the units of the input."""

    points: Float[Tensor, "batch ..."]
    part: Int[Tensor, " batch"]
    """Which of its searches (target or restart) it is from; -1 where the attack does not say."""
