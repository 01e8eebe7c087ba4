"""You only propagate once (zhang2019you): many steps of the input per pass through the network."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.attacks.base import Passes
from robustssm.attacks.region import Region
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.core.types import Classifier, SplitClassifier
from robustssm.training.objective import Memory, Objective, Update
from robustssm.training.perturbation import region_of, require_plain_linf
from robustssm.training.standard import accuracy
from robustssm.training.warmup import EpsWarmup, ramped

RELEASED_DECAY = 5e-4


@register("yopo")
@settings
class Yopo(Objective):
    """YOPO-m-n: `outer` passes through the network, each with `inner` steps through layer one.

    With e = embed(z), z starting uniformly in the threat set, each outer pass
    1. takes p = dCE(classify(e), y) / de, whose backward pass also gives the gradient of all
       parameters but the first layer's;
    2. steps z <- project(z + step_size eps ascend(d<p, embed(z)> / dz)), `inner` times;
    3. takes the first layer's gradient of the Hamiltonian <p, embed(z)> at the new z.
    Gradients are averaged over the outer passes, and the optimiser steps once. At eps = 0 with
    outer=1 this is standard training up to rounding.

    Of the source it leaves out the second optimiser (one rate and one schedule for all layers) and
    the weight decay inside the Hamiltonian, which the optimiser's own replaces.

    variant="released" is the code released with qi2024exploring: z starts at x + eps in every
    coordinate and is not clipped before the first pass; the first layer receives the gradient of
    both 1 and 3, with 5e-4 / 2 |W|^2 in its Hamiltonian; gradients are summed; and every parameter
    is stepped twice per batch on the same gradient. What one optimiser cannot do: there the second
    step is a second AdamW's, with moments of its own and without the schedule.

    Source: zhang2019you, algorithm 1 and its code; qi2024exploring, released code, for the variant.
    """

    threat: Threat
    outer: Annotated[int, Field(ge=1)] = 5
    """Passes through the whole network, m in the source."""
    inner: Annotated[int, Field(ge=1)] = 3
    """Steps through the first layer after each, n in the source."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    """Fraction of eps."""
    eps_warmup: EpsWarmup = 0.0
    """Share of training over which eps rises linearly from 0."""
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        if self.variant == "released":
            require_plain_linf(self.threat, method="Yopo(variant='released')")

    @property
    def divisible(self) -> bool:
        """Not in the released variant, whose second step every piece would take in full."""
        return self.variant == "paper"

    def passes(self, num_classes: int) -> Passes:
        """One of each per outer pass; passes through the first layer alone are not counted."""
        del num_classes
        return Passes(self.outer, self.outer)

    def at(self, progress: float) -> "Yopo":
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
        """Yields two gradients per outer pass, the last with a step.

        Parts: adversarial_loss, adversarial_accuracy, of the latest outer pass.

        Raises:
            Inapplicable: If the model has no `embed` and `classify`, or the threat is restricted
                in a way that is not a ball cut by a box.
        """
        del memory
        split = _split(model)
        region = region_of(self.threat, x, method="Yopo")
        released = self.variant == "released"
        points = x + region.eps if released else region.sample(noise.fork("start", 0))
        for number in range(self.outer):
            tokens = split.embed(points)
            # Cut off here, the loss has no gradient in the first layer; the released code's has.
            tokens = tokens if released else tokens.detach().requires_grad_()
            tokens.retain_grad()
            logits = split.classify(tokens)
            loss = F.cross_entropy(logits, y)
            unit = torch.zeros_like(loss, requires_grad=True)
            value = loss.detach()
            parts = {"adversarial_loss": value, "adversarial_accuracy": accuracy(logits, y)}
            share = 1 if released else self.outer
            yield Update(loss=loss / share + unit, parts=parts, step=False)
            p = _unscaled(tokens.grad, unit)
            points = self._steps(split, region, points, p)
            hamiltonian = _linear(split.embed(points), p)
            if released:
                hamiltonian = hamiltonian + _decay(model, split, points)
            last = number == self.outer - 1
            yield Update(loss=value + hamiltonian, parts=parts, step=last and not released)
            if last and released:
                yield from _step_twice(model, value, parts)

    def _steps(self, split: SplitClassifier, region: Region, points: Tensor, p: Tensor) -> Tensor:
        with mode(split, training=False):
            for _ in range(self.inner):
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(_linear(split.embed(points), p), points)
                move = self.step_size * region.eps * region.ascend(gradient)
                points = region.project(points.detach() + move)
        return points

    @classmethod
    def samples(cls) -> tuple["Objective", ...]:
        """Both norms, with a warm-up, and the released variant."""
        return (
            cls(threat=Threat(eps=0.1), outer=2, inner=2, eps_warmup=0.5),
            cls(threat=Threat(norm="l2", eps=0.5), outer=1, inner=3),
            cls(threat=Threat(eps=0.1), outer=2, variant="released"),
        )


def _split(model: Classifier) -> SplitClassifier:
    # By name: wrappers forward attributes, which protocol checks of newer Pythons miss.
    if not all(callable(getattr(model, name, None)) for name in ("embed", "classify")):
        raise Inapplicable(
            "`Yopo` needs a model whose forward is classify(embed(x)), as it steps through the "
            f"first layer alone; got {type(model).__name__} without `embed` and `classify`. Give "
            "it both, or train with `PGDTraining` or `Free`."
        )
    assert not isinstance(model, type)
    return model  # pyright: ignore[reportReturnType]


def _linear(
    tokens: Float[Tensor, "batch length d_model"], p: Float[Tensor, "batch length d_model"]
) -> Float[Tensor, ""]:
    """<p, tokens> less its own value: only its gradient is of use, and half precision overflows."""
    return (p * (tokens - tokens.detach())).sum()


def _unscaled(gradient: Tensor | None, unit: Tensor) -> Tensor:
    """A gradient without the loss scale of float16, which `unit` has met as well.

    Where that scale was too large the optimiser will skip the step; the losses on the way to it
    must be finite all the same.
    """
    assert gradient is not None and unit.grad is not None, (
        "the loop must run backward before it asks for more"
    )
    return torch.nan_to_num(gradient / unit.grad, nan=0.0, posinf=0.0, neginf=0.0)


def _decay(model: Classifier, split: SplitClassifier, points: Tensor) -> Tensor:
    """5e-4 / 2 |W|^2 over the matrices of the first layer, less its own value."""
    assert isinstance(model, nn.Module)
    weights = [p for p in model.parameters() if p.requires_grad]
    total = split.embed(points[:1]).sum()
    reached = torch.autograd.grad(total, weights, allow_unused=True)
    pairs = zip(weights, reached, strict=True)
    first = [w for w, gradient in pairs if gradient is not None and w.ndim > 1]
    terms = [(w.detach() * (w - w.detach())).sum() for w in first]
    return RELEASED_DECAY * sum(terms, points.new_zeros(()))


def _step_twice(model: Classifier, value: Tensor, parts: dict[str, Tensor]) -> Iterator[Update]:
    """Two steps on the gradient that has been gathered."""
    assert isinstance(model, nn.Module)
    unit = torch.zeros_like(value, requires_grad=True)
    gathered = {p: p.grad.clone() for p in model.parameters() if p.grad is not None}
    yield Update(loss=value + unit, parts=parts)  # adds nothing to it
    again = [(_unscaled(g, unit) * (p - p.detach())).sum() for p, g in gathered.items()]
    yield Update(loss=value + torch.stack(again).sum(), parts=parts)
