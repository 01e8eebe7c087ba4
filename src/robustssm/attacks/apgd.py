"""Auto-PGD (croce2020reliable; under l1 croce2021mind): PGD that sets its own step sizes."""

import dataclasses
import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks import apgd_steps
from robustssm.attacks.access import Access
from robustssm.attacks.apgd_steps import Goal, Walk
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found, worst_of
from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise

_SHARES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # of eps, and of the steps, with `large_eps`


@settings
class AutoPGD(Attack):
    """What both forms of Auto-PGD have in common."""

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    """Runs in all; later ones attack only examples that the earlier ones did not fool."""
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75
    """The step is halved unless more than this share of the steps since the last check rose."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Passes to average over at every point, for a model that answers at random. An example counts
    as fooled by the mean of its softmax; the authors' code goes by the last pass alone."""
    drop: bool = True
    """Leave examples out of a run once they are fooled. The same examples are fooled either way;
    their points are then the first found, otherwise the last."""
    large_eps: bool = False
    """Take 30 % of the steps within 3 eps, 30 % within 2 eps and only the rest within eps, as the
    standard suite does under l1."""

    def __post_init__(self) -> None:
        if self.large_eps and self.steps < 5:
            raise ValueError(
                violation(
                    f"`{type(self).__name__}(steps=...)`",
                    "be at least 5 with large_eps=True, so that each of its phases has some",
                    f"steps={self.steps}",
                )
            )

    def phases(self) -> tuple[tuple[float, int], ...]:
        """Multiples of eps, and the steps taken within each."""
        if not self.large_eps:
            return ((1.0, self.steps),)
        first, second, _ = (math.ceil(share * self.steps) for _, share in _SHARES)
        lengths = (first, second, self.steps - first - second)
        return tuple((factor, n) for (factor, _), n in zip(_SHARES, lengths, strict=True))

    def _looks(self) -> int:
        """Passes of all runs towards one goal: every phase looks at its start as well."""
        return self.restarts * self.draws * sum(n + 1 for _, n in self.phases())

    def _strength(self) -> str:
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        steps = f"-{self.steps}{runs}" if runs or self.steps != 100 else ""
        rho = f"-rho{self.rho:g}" if self.rho != 0.75 else ""
        draws = f"-draws{self.draws}" if self.draws > 1 else ""
        return steps + rho + draws + ("-large_eps" if self.large_eps else "")

    def _run(self, goal: Goal, region: Region, noise: Noise, groups: Tensor | None = None) -> Found:
        """One run, from a start of its own."""
        *larger, (_, last) = self.phases()
        points = None
        for factor, steps in larger:
            wide = dataclasses.replace(region, eps=factor * region.eps)
            walk = self._begin(goal, wide, noise, points, steps)
            points = apgd_steps.explore(walk, steps=steps)
        walk = self._begin(goal, region, noise, points, last)
        return apgd_steps.hunt(walk, steps=last, drop=self.drop, groups=groups)

    def _begin(
        self, goal: Goal, region: Region, noise: Noise, points: Tensor | None, steps: int
    ) -> Walk:
        """Before a phase, from where the one before it was best; from noise, if there was none."""
        start = apgd_steps.start(region, noise) if points is None else region.project(points)
        found = self.large_eps  # even the noise: its steps, too, move as much as it is sparse
        return Walk.begin(goal, region, start, steps=steps, rho=self.rho, found=found)


@register("apgd")
@settings
class APGD(AutoPGD):
    """Auto-PGD: steps with momentum, 2 eps long at first (l1: eps), from a point at distance eps.

    At fixed checkpoints, an example whose loss has not risen often enough halves its step and goes
    on from its best point. Under l1, steps move a share of the coordinates that follows the
    sparsity of the best point. With two classes DLR does not exist, and the margin takes its place
    (`divergence.dlr_defined`); with cross-entropy nothing changes.

    Unlike in the authors' code, a gradient is brought to unit l2 norm however small it is, and NaN
    in it counts as zero. Under l2, points are put into the ball and then into the box,
    as published, except where the threat set is restricted, which is projected onto exactly.

    Source: croce2020reliable, algorithm 1; l1 and `large_eps`: croce2021mind, section 3; `draws`:
    athalye2018obfuscated, section 4.2. Oracle: the authors' code
    (tests/attacks/test_apgd_reference.py).
    """

    loss: Literal["cross_entropy", "dlr"] = "cross_entropy"

    @property
    def label(self) -> str:
        """The loss, and what is not the default: "apgd-ce", "apgd-dlr-50x5"."""
        loss = "ce" if self.loss == "cross_entropy" else "dlr"
        return f"{self.name}-{loss}{self._strength()}"

    def passes(self, num_classes: int) -> Passes:
        """As if no example were fooled before the end."""
        return Passes(self._looks(), self._looks())

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Found:
        """Runs the attack; the start of run r is drawn from `noise.fork("run", r)`."""
        noise = noise.rows(len(x))
        part = torch.full_like(y, -1)

        def search(rows: Tensor, run: int) -> Found:
            goal = Goal(model, y[rows], loss=self.loss, draws=self.draws)
            found = self._run(goal, region.select(rows), noise.fork("run", run).select(rows))
            part[rows[found.wrong]] = run
            return found

        best = worst_of(self.restarts, search, torch.arange(len(x), device=x.device))
        return dataclasses.replace(best, part=part)

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Both losses, and every switch."""
        return (
            cls(steps=3),
            cls(steps=3, restarts=2, loss="dlr", drop=False),
            cls(steps=5, large_eps=True, draws=2),
        )


@register("apgd_targeted")
@settings
class APGDTargeted(AutoPGD):
    """Auto-PGD on the targeted DLR, once towards each of the most likely wrong classes.

    Target k is the class with the k-th largest clean logit among the wrong ones. With fewer than
    four classes the targeted DLR does not exist, and the margin towards the target takes its place
    (`divergence.dlr_defined(classes, targeted=True)`). For the rest see `APGD`.

    Source: croce2020reliable, equation 7. Oracle: the authors' code
    (tests/attacks/test_apgd_reference.py).
    """

    targets: Annotated[int, Field(ge=1)] = 9
    """How many; all wrong classes if there are fewer."""
    together: bool = True
    """Climb towards all targets of all examples in one batch; an example is done as soon as one
    target fools it. The same examples are fooled as one target after the other, from the same
    starts, in a `targets`-th of the calls; which target is found first may differ."""

    @property
    def label(self) -> str:
        """What is not the default: "apgd_targeted", "apgd_targeted-3targets-50"."""
        targets = f"-{self.targets}targets" if self.targets != 9 else ""
        return f"{self.name}{targets}{self._strength()}"

    def passes(self, num_classes: int) -> Passes:
        """As if no example were fooled before the end; and the clean prediction."""
        looks = min(self.targets, num_classes - 1) * self._looks()
        return Passes(looks + self.draws, looks)

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Found:
        """Runs the attack; starts are drawn from `noise.fork("run", r).spread(target ranks)`."""
        noise = noise.rows(len(x))
        targets = self._targets(model, x, y)
        count, part = targets.shape[1], torch.full_like(y, -1)

        def towards(rows: Tensor, ranks: Tensor, run: int, groups: Tensor | None) -> Found:
            goal = Goal(model, y[rows], targets[rows, ranks], draws=self.draws)
            streams = noise.fork("run", run).select(rows).spread(ranks)
            return self._run(goal, region.select(rows), streams, groups)

        def one(rows: Tensor, number: int) -> Found:
            rank, run = divmod(number, self.restarts)
            found = towards(rows, torch.full_like(rows, rank), run, None)
            part[rows[found.wrong]] = rank
            return found

        def every(rows: Tensor, run: int) -> Found:
            groups = torch.arange(len(rows), device=rows.device).repeat_interleave(count)
            ranks = torch.arange(count, device=rows.device).repeat(len(rows))
            found = towards(rows[groups], ranks, run, groups)
            chosen = _best_of(found, count)
            best = Found(found.points[chosen], found.loss[chosen], found.wrong[chosen])
            part[rows[best.wrong]] = ranks[chosen[best.wrong]]
            return best

        rows = torch.arange(len(x), device=x.device)
        if self.together:
            best = worst_of(self.restarts, every, rows)
        else:
            best = worst_of(count * self.restarts, one, rows)
        return dataclasses.replace(best, part=part)

    def _targets(self, model: Access, x: Tensor, y: Tensor) -> Tensor:
        """The most likely wrong classes (batch, targets) of the clean inputs, best first."""
        scores = model.logits(x)
        if self.draws > 1:
            scores = scores.softmax(1)
            for _ in range(self.draws - 1):
                scores = scores + model.logits(x).softmax(1)
        scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min)
        rivals = scores.scatter(1, y[:, None], -torch.inf)  # last, below all that is finite
        ranked = rivals.argsort(dim=1, descending=True, stable=True)
        return ranked[:, : min(self.targets, scores.shape[1] - 1)]

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Targets together and one by one, with every switch."""
        return (
            cls(steps=3),
            cls(steps=2, restarts=2, targets=2, together=False, drop=False),
            cls(steps=5, large_eps=True, draws=2),
        )


def _best_of(found: Found, count: int) -> Int[Tensor, " batch"]:
    """For each `count` rows the first misclassified one, or else that of the highest loss."""
    wrong, loss = found.wrong.view(-1, count), found.loss.view(-1, count)
    best = torch.where(wrong.any(1), wrong.int().argmax(1), loss.argmax(1))
    return best + count * torch.arange(len(best), device=best.device)
