"""Square (andriushchenko2020square): random search with windows of shrinking size; no gradient."""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found, worst_of
from robustssm.attacks.square_canvas import Canvas
from robustssm.attacks.square_mounds import Mounds
from robustssm.attacks.square_proposals import Extremes, Proposals
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.ops import divergence

_NUMBERS = 2**24  # held at a time for the queries to come; how many queries that is moves no result
_LONGEST = 4096


@register("square")
@settings
class Square(Attack):
    """Tries one window after the other and keeps what lowers the margin z[y] - max of the others.

    Windows shrink on the schedule of AutoAttack, not rescaled to the number of queries. Images have
    squares, sequences and vectors runs of positions with a sign per feature, see `form`. Unlike in
    the authors' code every example draws windows of its own, and an example is done when it is
    misclassified, not already when its margin is 0.

    Source: andriushchenko2020square, section 3 (l1: croce2021mind), constants of croce2020reliable.
    """

    queries: Annotated[int, Field(ge=1)] = 5000
    """Proposals per run, the start not counted."""
    restarts: Annotated[int, Field(ge=1)] = 1
    """Runs in all; later ones attack only examples that the earlier ones did not fool."""
    start_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the plane that the first windows cover."""
    lookahead: Annotated[int, Field(ge=1)] = 8
    """Queries tried at once from one point. Those after the first success are tried again from the
    new point, so the outcome is that of one at a time: fewer calls for a few more passes."""
    remember: bool = True
    """Whether to skip passes whose outcome is known: proposals that move nothing, and those that
    were rejected at the same point before. For models that are not random."""

    @property
    def label(self) -> str:
        """Queries, runs and share where they are not the usual: "square", "square-1000x2"."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        queries = f"-{self.queries}" if self.queries != 5000 or runs else ""
        share = f"-p{self.start_share:g}" if self.start_share != 0.8 else ""
        return f"{self.name}{queries}{runs}{share}"

    def form(self, shape: tuple[int, ...]) -> str:
        """Which form of the attack examples of a shape get: "square", for others "square-1d".

        Args:
            shape: Shape of one example.
        """
        return "square-1d" if Canvas(shape).line else "square"

    def passes(self, num_classes: int) -> Passes:
        """One pass per query and one for the start, as the method counts them.

        Looking ahead repeats up to `lookahead - 1` passes per success, remembering saves some.
        """
        return Passes(self.restarts * (self.queries + 1), 0)

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."] | Found:
        """Runs the attack; run r draws from `noise.fork("run", r)`, one stream per example."""
        Canvas(tuple(x.shape[1:]))  # refuses what has no windows
        if region.eps == 0 or not x.numel():
            return x
        streams = noise.rows(len(x))

        def search(rows: Tensor, run: int) -> Found:
            some = streams.select(rows).fork("run", run)
            return self._run(model, y[rows], region.select(rows), some)

        return worst_of(self.restarts, search, torch.arange(len(x), device=x.device))

    def _run(self, model: Access, y: Tensor, region: Region, noise: Noise) -> Found:
        kind = Extremes if region.norm == "linf" else Mounds
        canvas = Canvas(tuple(region.x.shape[1:]))
        points = kind.start(region, noise.fork("start"))
        found = _judged(model, points, y)
        plan = canvas.stretches(
            self.queries,
            share=self.start_share,
            odd=kind.odd,
            longest=_longest(len(y), kind.draws(canvas)),
        )
        for stretch in plan:
            left = (~found.wrong).nonzero().squeeze(1)
            if not len(left):
                break
            proposals = kind(region.select(left), noise.select(left), stretch)
            now = Found(found.points[left], found.loss[left], found.wrong[left])
            after = self._search(model, y[left], proposals, now)
            found = Found(
                found.points.index_copy(0, left, after.points),
                found.loss.index_copy(0, left, after.loss),
                found.wrong.index_copy(0, left, after.wrong),
            )
        return found

    def _search(self, model: Access, y: Tensor, proposals: Proposals, now: Found) -> Found:
        """One stretch of queries, every example at its own pace."""
        points, loss, wrong = now.points.clone(), now.loss.clone(), now.wrong.clone()
        agenda = _Agenda(proposals, points, remember=self.remember)
        while True:
            rows, queries, number = agenda.next(self.lookahead)
            if not len(rows):
                return Found(points, loss, wrong)
            tried = _judged(model, proposals.propose(points[rows], rows, queries), y[rows])
            better = (tried.loss > loss[rows]) | tried.wrong
            hits = better.nonzero().squeeze(1)
            # Of a row's successes the first: pairs are in the order of rows, then of queries.
            first = torch.ones_like(hits, dtype=torch.bool)
            first[1:] = rows[hits[1:]] != rows[hits[:-1]]
            hits = hits[first]
            won = rows[hits]
            points[won], loss[won] = tried.points[hits], tried.loss[hits]
            wrong[won] = tried.wrong[hits]
            agenda.note(number)
            if len(won):
                agenda.restart(won, queries[hits], points[won])
                agenda.drop(won[wrong[won]])

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Few queries, with every way to count them."""
        return (
            cls(queries=30),
            cls(queries=12, lookahead=1, remember=False),
            cls(queries=8, restarts=2, start_share=0.3),
        )


class _Agenda:
    """Which queries of a stretch every row has still to try, in order."""

    def __init__(self, proposals: Proposals, points: Tensor, *, remember: bool):
        self._proposals = proposals
        self._count = count = proposals.stretch.after - proposals.stretch.first
        device = points.device
        self._at = torch.arange(count, device=device)
        self._repeated = proposals.repeated() if remember else None
        self._taken = torch.zeros(len(points), dtype=torch.int32, device=device)
        everything = torch.arange(1, count + 1, dtype=torch.int32, device=device)
        self._open = everything.repeat(len(points), 1)  # how many are open up to each query
        if remember:
            rows = torch.arange(len(points), device=device)
            self.restart(rows, torch.full_like(rows, -1), points)

    def next(
        self, ahead: int
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " batch"]]:
        """The next queries, at most `ahead` per row: their rows, numbers, and how many per row."""
        step = torch.arange(1, ahead + 1, dtype=torch.int32, device=self._open.device)
        queries = torch.searchsorted(self._open, self._taken[:, None] + step)
        there = queries < self._count
        return there.nonzero()[:, 0], queries[there], there.sum(1)

    def note(self, number: Int[Tensor, " batch"]) -> None:
        """The next queries, so many per row, have been tried."""
        self._taken += number

    def restart(
        self,
        rows: Int[Tensor, " rows"],
        after: Int[Tensor, " rows"],
        points: Float[Tensor, "rows *shape"],
    ) -> None:
        """Rows go on from new points, after the queries that gave them."""
        if self._repeated is None:
            self._taken[rows] = after.int() + 1
            return
        # What is repeated from before the point was reached has not been tried from it.
        todo = (self._at > after[:, None]) & (self._repeated[rows] <= after[:, None])
        moving = self._proposals.moving(points, rows)
        if moving is not None:
            todo &= moving
        self._open[rows] = todo.cumsum(1, dtype=torch.int32)
        self._taken[rows] = 0

    def drop(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " batch"]) -> None:
        """These rows are done."""
        self._taken[rows] = self._count


def _judged(model: Access, points: Tensor, y: Tensor) -> Found:
    logits = model.logits(points)
    return Found(points, divergence.margin(logits, y), divergence.wrong(logits, y))


def _longest(rows: int, draws: int) -> int:
    return max(64, min(_LONGEST, _NUMBERS // (max(rows, 1) * (8 + draws))))
