"""One run of Auto-PGD (croce2020reliable; under l1 croce2021mind): steps with momentum, per row.

Rows are independent of each other, so that those that are done can be left out on the way.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.apgd_pace import Halving, Pace, Sparsity, selected
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found
from robustssm.core.rng import Noise
from robustssm.ops import balls, divergence
from robustssm.ops.balls import over

_INERTIA = 0.25  # weight of the last move in the next
_TINY = 1e-12


class Seen(NamedTuple):
    """What the model says about some points."""

    loss: Float[Tensor, " batch"]
    wrong: Bool[Tensor, " batch"]
    gradient: Float[Tensor, "batch ..."]


@dataclass(frozen=True)
class Goal:
    """What rows climb: cross-entropy, DLR, or with `target` the DLR towards one class each.

    With too few classes for DLR (`divergence.dlr_defined`), the margin in its place.
    """

    model: Access
    y: Int[Tensor, " batch"]
    target: Int[Tensor, " batch"] | None = None
    loss: Literal["cross_entropy", "dlr"] = "dlr"
    draws: int = 1
    """Passes to average over, for a model that answers at random."""

    def select(self, rows: Int[Tensor, " rows"]) -> "Goal":
        """The goals of some rows."""
        return replace(self, **selected(self, rows))

    def look(self, points: Float[Tensor, "batch ..."]) -> Seen:
        """Loss, error and gradient; of several draws the means, and the error of the mean softmax.

        The authors' code averages the gradient alone; loss and error are those of its last draw.
        """
        logits, loss, gradient = self.model.climb(points, self._measure)
        if self.draws > 1:
            logits = logits.softmax(1)
            for _ in range(self.draws - 1):
                more = self.model.climb(points, self._measure)
                logits = logits + more.logits.softmax(1)
                loss, gradient = loss + more.loss, gradient + more.gradient
            loss, gradient = loss / self.draws, gradient / self.draws
        # A NaN at the start would stay the best for good, as nothing exceeds it.
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        return Seen(loss, divergence.wrong(logits, self.y), gradient)

    def _measure(self, logits: Tensor, rows: slice) -> Tensor:
        y, classes = self.y[rows], logits.shape[1]
        if self.target is not None:
            defined = divergence.dlr_defined(classes, targeted=True)
            towards = divergence.dlr_targeted if defined else divergence.margin_towards
            return towards(logits, y, self.target[rows])
        if self.loss == "cross_entropy":
            return divergence.cross_entropy(logits, y)
        defined = divergence.dlr_defined(classes)
        return divergence.dlr(logits, y) if defined else divergence.margin(logits, y)


@dataclass
class Walk:
    """Rows on their way, and the best point that each has met."""

    goal: Goal
    region: Region
    pace: Pace
    points: Float[Tensor, "batch ..."]
    previous: Float[Tensor, "batch ..."]
    gradient: Float[Tensor, "batch ..."]
    wrong: Bool[Tensor, " batch"]
    """Whether the model errs at `points`."""
    best: Float[Tensor, "batch ..."]
    best_gradient: Float[Tensor, "batch ..."]
    best_loss: Float[Tensor, " batch"]
    loss: Float[Tensor, " batch"]
    inertia: float = 0.0

    @classmethod
    def begin(
        cls,
        goal: Goal,
        region: Region,
        start: Float[Tensor, "batch ..."],
        *,
        steps: int,
        rho: float,
        found: bool,
    ) -> "Walk":
        """Looks at the start; `found` says that an earlier walk has found it."""
        loss, wrong, gradient = goal.look(start)
        gradient = region.reachable(gradient)
        if region.norm == "l1":
            given = start if found else None
            pace = Sparsity.begin(
                region.x, eps=region.eps, steps=steps, free=region.free, found=given
            )
        else:
            pace = Halving.begin(loss, eps=region.eps, steps=steps, rho=rho)
        return cls(goal, region, pace, start, start, gradient, wrong, start, gradient, loss, loss)

    def select(self, rows: Int[Tensor, " rows"]) -> "Walk":
        """Some rows of the walk."""
        goal, region, pace = (part.select(rows) for part in (self.goal, self.region, self.pace))
        return replace(self, goal=goal, region=region, pace=pace, **selected(self, rows))

    def advance(self) -> None:
        """Steps, looks, and notes what is best."""
        ahead = self._ahead()
        self.previous, self.points = self.points, ahead
        self.loss, self.wrong, gradient = self.goal.look(ahead)
        self.gradient = self.region.reachable(gradient)
        better = self.loss > self.best_loss
        self.best_loss = torch.where(better, self.loss, self.best_loss)
        better = over(better, ahead)
        self.best = torch.where(better, ahead, self.best)
        self.best_gradient = torch.where(better, self.gradient, self.best_gradient)

    def settle(self) -> None:
        """At a checkpoint, adapts the pace and takes some rows back to their best points."""
        back = self.pace.update(self.loss, self.best_loss, self.best)
        if back is not None:
            back = over(back, self.points)
            self.points = torch.where(back, self.best, self.points)
            self.gradient = torch.where(back, self.best_gradient, self.gradient)

    def _ahead(self) -> Tensor:
        points, region, pace = self.points, self.region, self.pace
        if isinstance(pace, Sparsity):
            return region.project(points + pace.step(self.gradient))
        step = over(pace.size, points) * balls.ascend(self.gradient, norm=region.norm)
        move = _into(region, points + step) - points
        weight, self.inertia = self.inertia, _INERTIA  # none in the first step
        moved = points + move * (1 - weight) + (points - self.previous) * weight
        return _into(region, moved)


def start(region: Region, noise: Noise) -> Float[Tensor, "batch ..."]:
    """A random point on the sphere of radius eps, cut by the box; one draw."""
    x = region.x
    if region.norm == "linf":
        drawn = region.reachable(noise.uniform(like=x, low=-1.0, high=1.0))
        length = drawn.flatten(1).abs().amax(1)
        return _into(region, x + region.eps * (drawn / over(length + _TINY, x)))
    drawn = region.reachable(noise.normal(like=x))
    if region.norm == "l2":
        drawn = region.eps * (drawn / over(drawn.flatten(1).norm(dim=1) + _TINY, x))
        return _into(region, x + drawn)
    return region.project(x + drawn)


def explore(walk: Walk, *, steps: int) -> Float[Tensor, "batch ..."]:
    """Walks, and returns the points of highest loss."""
    for _ in range(steps):
        walk.advance()
        walk.settle()
    return walk.best


def hunt(
    walk: Walk, *, steps: int, drop: bool, groups: Int[Tensor, " batch"] | None = None
) -> Found:
    """Walks until all rows are misclassified, or for so many steps.

    Args:
        walk: Just begun.
        steps: How many, at most.
        drop: Whether rows end as soon as they are misclassified. If not, all take all steps.
        groups: With `drop`, rows with the same number (0, 1, ...) end together; None for alone.

    Returns:
        Where a row was misclassified, the first such point, without `drop` the last; elsewhere the
        point of highest loss.
    """
    points, loss, wrong = walk.points.clone(), walk.best_loss.clone(), torch.zeros_like(walk.wrong)
    rows = torch.arange(len(points), device=points.device)
    numbers = rows if groups is None else groups
    for step in range(steps + 1):
        if step:
            walk.advance()
        if walk.wrong.any():
            fooled = rows[walk.wrong]
            points[fooled], wrong[fooled] = walk.points[walk.wrong], True
            if drop:
                done = torch.isin(numbers[rows], numbers[fooled])
                loss[rows[done]] = walk.best_loss[done]
                left = (~done).nonzero().squeeze(1)
                rows, walk = rows[left], walk.select(left)
                if not len(rows):
                    return Found(points, loss, wrong)
        if step:
            walk.settle()
    loss[rows] = walk.best_loss
    unharmed = ~wrong[rows]
    points[rows[unharmed]] = walk.best[unharmed]
    return Found(points, loss, wrong)


def _into(region: Region, points: Tensor) -> Tensor:
    """Into the threat set: under l2, where nothing restricts it, into the ball, then the box.

    That is as published; the point lies in the set, but need not be the nearest one.
    """
    if region.norm == "linf" and region.band is None:
        return points.clamp(*region.interval)
    if region.norm == "l2" and region.whole:
        delta = points - region.x
        length = delta.flatten(1).norm(dim=1)
        shrink = length.clamp(max=region.eps) / (length + _TINY)
        return (region.x + over(shrink, points) * delta).clamp(region.low, region.high)
    return region.project(points)
