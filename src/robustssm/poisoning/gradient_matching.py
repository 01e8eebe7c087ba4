"""Gradient matching: poisons whose training gradient points where the targets' loss grows.

For one group with targets T and perturbed base examples P(delta), over all parameters theta,

    g* = -grad_theta mean_T CE,      g(delta) = grad_theta mean_P CE,
    minimise  1 - <g, g*> / (|g| |g*|)  +  tail * mean(ramp * (delta / eps)^2)

over the threat set. Labels stay as they are, and each label is right: the poisons are clean-label.

Source: slutzky2024implicit, its code for CIFAR-10, after geiping2021witches.
Oracle: finite differences (tests/poisoning/test_gradient_matching.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.core.errors import Inapplicable, violation
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.data.batches import batches
from robustssm.poisoning.brewing import Brewing, reading_order, tokens_of
from robustssm.poisoning.matching import Matching, loss_gradient, norm
from robustssm.poisoning.targets import Group, Targets
from robustssm.records.brewing import BrewedRecord

Progress = Callable[[str, float], None]
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, eq=False)
class Brewed:
    """The poisons of one group."""

    base: Int[Tensor, " poisons"]
    """Rows of the base examples."""
    x: Float[Tensor, "poisons ..."]
    """Perturbed, on the CPU: exactly in the threat set."""
    record: BrewedRecord


def brew(
    model: nn.Module,
    base: Split,
    targets: Targets,
    settings: Brewing,
    *,
    noise: Noise,
    done: Sequence[Brewed] = (),
    finished: Callable[[Brewed], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Brewed, ...]:
    """Perturbs base examples, group by group, so that learning them undoes the targets.

    Args:
        model: Trained on clean data; its parameters that need gradients are matched, in their
            precision. Comes back as it was.
        base: Examples to perturb, at least `settings.poisons`; labels are left alone.
        targets: From `choose_targets` with the same model and settings.
        settings: Everything else.
        noise: Source of starts, augmentation and dropout. A group's draws depend on its number
            alone.
        done: Groups of an earlier, interrupted call, in any order; they are not brewed again.
        finished: Told of each group once it is brewed, to be kept.
        progress: Told the share that is done.

    Returns:
        The groups, in their order.

    Raises:
        ValueError: If there are too few base examples, or they are not in the threat's bounds.
        Inapplicable: If the loss of some targets has no gradient.
    """
    if len(base) < settings.poisons:
        raise ValueError(
            violation(
                "`Brewing(poisons=...)`",
                f"be at most the {len(base)} base examples",
                settings.poisons,
            )
        )
    parameter = next(model.parameters())
    groups = {each.record.group: each for each in done}
    for number, group in enumerate(targets.groups):
        if number not in groups:
            (batch,) = batches(
                base, order=group.base, batch_size=len(group.base), device=parameter.device
            )
            x = batch.x.to(parameter.dtype)
            settings.threat.check(x, attack="brew")
            with mode(model, training=False):
                matching = _matching(model, x, batch.y, targets, group, settings)
                told = _telling(progress, number, len(targets.groups))
                groups[number] = _brewed(matching, group, number, noise.fork("group", number), told)
            if finished is not None:
                finished(groups[number])
        if progress is not None:
            progress("brewing", (number + 1) / len(targets.groups))
    return tuple(groups[number] for number in range(len(targets.groups)))


def sign_adam(
    gradient: Callable[[Float[Tensor, "batch ..."], int], Float[Tensor, "batch ..."]],
    x_adv: Float[Tensor, "batch ..."],
    x: Float[Tensor, "batch ..."],
    settings: Brewing,
) -> Float[Tensor, "batch ..."]:
    """Descends by Adam on the signs of the gradient, projecting after every step.

    Args:
        gradient: Of the objective, at a point and an iteration.
        x_adv: Start, in the threat set of `x`.
        x: Base examples.
        settings: Iterations, steps and threat.

    Source: kingma2015adam for the moments; slutzky2024implicit, its code, for the signs.
    """
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for iteration in range(settings.iterations):
        sign = gradient(x_adv, iteration).sign()
        first = _BETAS[0] * first + (1 - _BETAS[0]) * sign
        second = _BETAS[1] * second + (1 - _BETAS[1]) * sign.square()
        mean = first / (1 - _BETAS[0] ** (iteration + 1))
        size = (second / (1 - _BETAS[1] ** (iteration + 1))).sqrt() + _EPSILON
        x_adv = settings.threat.project(x_adv - settings.step(iteration) * mean / size, x)
    return x_adv


def _matching(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targets: Targets,
    group: Group,
    settings: Brewing,
) -> Matching:
    aimed = targets.examples.take(group.targets.to(targets.examples.y.device))
    gradient = loss_gradient(model, aimed.x.to(x), aimed.y.to(y.device))
    wanted = tuple(-g.detach() for g in gradient)
    length = float(norm(wanted))
    if not 0 < length < math.inf:
        raise Inapplicable(
            "The targets' loss must have a finite gradient that is not 0; got one of length "
            f"{length:g}. The model fits these targets exactly, or not at all: brew on "
            "a model that was trained for a shorter time, or choose other targets."
        )
    order = reading_order(tuple(x.shape[1:]), ramp=settings.ramp, tokens=tokens_of(model))
    weight = settings.tail * order.ramp() / (settings.threat.eps**2 * x.numel())
    return Matching(model, x, y, wanted, weight.to(x), settings)


def _brewed(
    matching: Matching, group: Group, number: int, noise: Noise, told: Callable[[float], None]
) -> Brewed:
    """Runs every restart and keeps the best."""
    settings, x = matching.settings, matching.x
    found, objectives = [], []
    for restart in range(settings.restarts):
        here = noise.fork("restart", restart)

        def gradient(x_adv: Tensor, at: int, here: Noise = here, run: int = restart) -> Tensor:
            told((run * settings.iterations + at) / (settings.restarts * settings.iterations))
            return matching.gradient(x_adv, here.fork("iteration", at))

        # Normal draws cut off at eps by the projection, as published.
        start = here.fork("start").normal(like=x, std=settings.threat.eps)
        x_adv = sign_adam(gradient, settings.threat.project(x + start, x), x, settings)
        similarity, penalty = matching.similarity(x_adv), matching.penalty(x_adv)
        found.append((x_adv, similarity, penalty))
        objectives.append(1 - similarity + penalty)
    best = min(range(len(found)), key=objectives.__getitem__)
    x_adv, similarity, penalty = found[best]
    record = BrewedRecord(
        group=number,
        targets=len(group.targets),
        poisons=len(group.base),
        high_loss=group.high_loss,
        similarity_before=matching.similarity(x),
        similarity=similarity,
        penalty=penalty,
        objectives=tuple(objectives),
    )
    return Brewed(group.base, x_adv.detach().cpu(), record)


def _telling(progress: Progress | None, number: int, groups: int) -> Callable[[float], None]:
    def told(share: float) -> None:
        if progress is not None:
            progress("brewing", (number + share) / groups)

    return told
