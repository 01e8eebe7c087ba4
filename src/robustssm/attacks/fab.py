"""Fast adaptive boundary attack (croce2020minimally): the nearest misclassified point."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found
from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops import divergence, hyperplanes
from robustssm.ops.balls import over

_ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
_DUALS = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


@dataclass(frozen=True)
class _Rows:
    """Searches, one per row: of which example, for which classes, and where they are now."""

    example: Int[Tensor, " rows"]
    y: Int[Tensor, " rows"]
    rivals: Int[Tensor, "rivals rows"]
    """Classes whose boundary to `y` is followed: at each step the nearest of them."""
    region: Region
    at: Float[Tensor, "rows ..."]

    def select(self, rows: Bool[Tensor, " rows"]) -> "_Rows":
        """Some of the searches."""
        region, rivals = self.region.select(rows), self.rivals[:, rows]
        return _Rows(self.example[rows], self.y[rows], rivals, region, self.at[rows])


class _Plane(NamedTuple):
    """Where the model, linear from the current point on, would have its nearest boundary."""

    distance: Float[Tensor, " rows"]
    value: Float[Tensor, " rows"]
    """Logit of the rival less that of `y`, at the current point."""
    gradient: Float[Tensor, "rows d"]


@settings
class _Boundary(Attack):
    """What the untargeted and the targeted form share: one search, its runs and its settings.

    A step takes the boundary near the current point for a hyperplane. It goes `eta` times the way
    to the nearest point of it in the box: from the current point and, with weight
    alpha = min(length of the first way / length of both, alpha_max), from the input. A
    misclassified point is kept if it is the nearest so far, and drawn back towards the input.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    """Runs in all. The first starts at the input, without randomness; later ones eps / 2 from it,
    in a random direction, for the examples that the earlier ones did not fool."""
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest weight of the way from the input."""
    eta: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.05
    """How far to go; 1 ends on the hyperplane itself."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of its distance to the input that a misclassified point keeps."""
    together: bool = True
    """All classes of an example in one batch; else one after the other, which needs less memory."""
    stop_early: bool = True
    """Stop the search for an example once it is fooled within eps. Without, the same examples are
    fooled, by nearer points."""

    @property
    def label(self) -> str:
        """The name, then what may change who is fooled: "fab", "fab-x5", "fab-20x5-eta=1.1"."""
        strength = f"{self.steps}" if self.steps != 100 else ""
        strength += f"x{self.restarts}" if self.restarts > 1 else ""
        usual = {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9}
        others = [f"{k}={getattr(self, k):g}" for k, v in usual.items() if getattr(self, k) != v]
        return "-".join([self.name, *([strength] if strength else []), *others])

    @abstractmethod
    def _rivals(self, clean: Tensor, y: Tensor) -> Int[Tensor, "parts rivals batch"]:
        """For each example the classes to search for: parts one by one, rivals at once."""

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Found:
        """Runs the attack; `loss` is minus the distance of the nearest misclassified point.

        That point may lie outside eps; where none was found, it is the input, at distance infinity.
        Run r > 0 starts from draws of `noise.fork("run", r)`, spread over the targets.

        Raises:
            Inapplicable: If the threat set is restricted to a band.
        """
        self._refuse_bands(region)
        points, part = x.clone(), torch.full_like(y, -1)
        norms = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        if region.eps == 0 or not x.numel():
            return Found(points, -norms, norms <= region.eps, part)
        clean = model.logits(x)
        norms = norms.masked_fill(divergence.wrong(clean, y), 0.0)
        rivals, streams = self._rivals(clean, y), noise.rows(len(x))
        for run, parts in self._order(len(rivals)):
            left = (norms > region.eps).nonzero().squeeze(1)
            if not len(left):
                break
            rows = _rows(left, y, rivals[parts], region)
            if run > 0:
                kinds = torch.tensor(parts).repeat_interleave(len(left))
                stream = streams.select(rows.example).fork("run", run).spread(kinds)
                rows = replace(rows, at=_random_start(rows.region, stream))
            nearest, reached = self._search(model, rows, len(x))
            shortest, which = reached.unflatten(0, (len(parts), len(left))).min(0)
            closer = (shortest < norms[left]).nonzero().squeeze(1)
            which, at = which[closer], left[closer]
            points[at], norms[at] = nearest[which * len(left) + closer], shortest[closer]
            part[at] = which + parts[0] if len(rivals) > 1 else run
        return Found(points, -norms, norms <= region.eps, part)

    def _order(self, parts: int) -> Iterator[tuple[int, list[int]]]:
        """Runs, and which parts go at once."""
        for run in range(self.restarts):
            if self.together:
                yield run, list(range(parts))
            else:
                yield from ((run, [part]) for part in range(parts))

    def _search(self, model: Access, rows: _Rows, examples: int) -> tuple[Tensor, Tensor]:
        """The nearest misclassified point of every row and its distance; infinity for none."""
        nearest, reached = rows.region.x.clone(), rows.at.new_full((len(rows.y),), torch.inf)
        reached, live = reached.double(), torch.arange(len(rows.y), device=rows.y.device)
        for _ in range(self.steps):
            points = self._step(rows, self._plane(model, rows))
            wrong = divergence.wrong(model.logits(points), rows.y)
            norm = rows.region.distance(points)
            closer = wrong & (norm < reached[live])
            at = live[closer]
            nearest[at], reached[at] = points[closer], norm[closer]
            back = rows.region.x + self.beta * (points - rows.region.x)
            rows = replace(rows, at=torch.where(over(wrong, points), back, points))
            within = closer & (norm <= rows.region.eps)
            if self.stop_early and bool(within.any()):
                fooled = torch.zeros(examples, dtype=torch.bool, device=within.device)
                fooled[rows.example[within]] = True
                on = ~fooled[rows.example]
                live, rows = live[on], rows.select(on)
                if not len(live):
                    break
        return nearest, reached

    def _step(self, rows: _Rows, plane: _Plane) -> Tensor:
        """The next points: too far along both ways, mixed, and cut at the box."""
        region, w = rows.region, plane.gradient
        at, x, low, high = (
            z.reshape(w.shape) for z in (rows.at, region.x, region.low, region.high)
        )
        # A point that rounding put on the boundary itself would stay there: it goes beyond.
        least = 4 * torch.finfo(w.dtype).eps * torch.linalg.vecdot(w.abs(), at.abs())
        lead = torch.where(plane.value.abs() < least, -least, plane.value)
        offset = torch.linalg.vecdot(w.double(), at.double()) - lead
        starts, w, offset = torch.cat((at, x)), torch.cat((w, w)), torch.cat((offset, offset))
        ends = {"low": torch.cat((low, low)), "high": torch.cat((high, high))}
        ways = hyperplanes.step(starts, w, offset, norm=region.norm, **ends)
        lengths = torch.linalg.vector_norm(ways, ord=_ORDERS[region.norm], dim=1)
        near, far = lengths.chunk(2)
        alpha = torch.where(near + far > 0, near / (near + far), 1.0).clamp(max=self.alpha_max)
        first, second = (starts + self.eta * ways).chunk(2)
        mixed = (1 - alpha)[:, None] * first + alpha[:, None] * second
        return mixed.clamp(low, high).reshape(rows.at.shape)

    def _plane(self, model: Access, rows: _Rows) -> _Plane:
        """The nearest hyperplane among those of the rivals; the first of equals."""
        best: _Plane | None = None
        for rivals in rows.rivals.split(len(rows.rivals) if self.together else 1):
            new = _linearise(model, rows, rivals)
            if best is None:
                best = new
            else:
                closer = new.distance < best.distance
                pairs = zip(new, best, strict=True)
                best = _Plane(*(torch.where(over(closer, b), a, b) for a, b in pairs))
        assert best is not None, "there is at least one rival"
        return best

    def _refuse_bands(self, region: Region) -> None:
        if region.band is not None:
            raise Inapplicable(
                f"`{type(self).__name__}` must know the point of a hyperplane nearest to the input "
                f"under the norm, {region.norm}, for which there is no closed form within a band "
                f"of frequencies; got frequencies from {region.band.low:g} to "
                f"{region.band.high:g}. Run APGD or PGD there, or leave the band out."
            )


@register("fab")
@settings
class FAB(_Boundary):
    """Follows the nearest boundary to any other class, at a backward pass per class and step.

    Where there are many classes, `FABTargeted` costs less.

    Source: croce2020minimally, algorithm 1; settings of croce2020reliable, appendix B.
    """

    def passes(self, num_classes: int) -> Passes:
        """The clean prediction; per step, one backward pass per other class, and a check."""
        steps, others = self.restarts * self.steps, num_classes - 1
        return Passes(1 + steps * (others + 1), steps * others)

    def _rivals(self, clean: Tensor, y: Tensor) -> Tensor:
        others = torch.arange(clean.shape[1] - 1, device=y.device)[:, None]
        return (others + (others >= y))[None]

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Both ways to batch and to stop, and a random start."""
        return (cls(steps=3), cls(steps=2, restarts=2, together=False, stop_early=False))


@register("fab_targeted")
@settings
class FABTargeted(_Boundary):
    """Follows the boundary to one class after the other, the likeliest first: part of AutoAttack.

    A point of any wrong class counts, whichever class was followed.

    Source: croce2020reliable, section 5 (FAB-T), from croce2020minimally, algorithm 1.
    """

    targets: Annotated[int, Field(ge=1)] = 9
    """Classes to follow, in order of the clean logits; with C classes at most C - 1."""

    @property
    def label(self) -> str:
        """As for `FAB`, and the number of targets: "fab_targeted", "fab_targeted-targets=3"."""
        return super().label + (f"-targets={self.targets}" if self.targets != 9 else "")

    def passes(self, num_classes: int) -> Passes:
        """The clean prediction; per target and step, one pass with its gradient and a check."""
        steps = self.restarts * self.steps * min(self.targets, num_classes - 1)
        return Passes(1 + 2 * steps, steps)

    def _rivals(self, clean: Tensor, y: Tensor) -> Tensor:
        ranked = clean.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
        return ranked[:, 1 : 1 + self.targets].T[:, None]

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Both ways to batch and to stop, and random starts."""
        return (
            cls(steps=3),
            cls(steps=2, restarts=2, targets=2),
            cls(steps=2, restarts=2, targets=2, together=False, stop_early=False),
        )


def _rows(left: Tensor, y: Tensor, rivals: Tensor, region: Region) -> _Rows:
    """One row per part and example that is left, part by part, each at its input."""
    example = left.repeat(len(rivals))
    chosen = region.select(example)
    rivals = rivals[:, :, left].transpose(0, 1).flatten(1)
    return _Rows(example, y[example], rivals, chosen, chosen.x)


def _random_start(region: Region, noise: Noise) -> Tensor:
    """A point eps / 2 from the input in a random direction, cut at the box."""
    x = region.x
    drawn = noise.uniform(like=x, low=-1) if region.norm == "linf" else noise.normal(like=x)
    drawn = drawn if region.free is None else drawn * region.free
    length = torch.linalg.vector_norm(drawn.flatten(1), ord=_ORDERS[region.norm], dim=1)
    scale = region.eps / 2 / torch.where(length > 0, length, 1.0)
    return (x + over(scale, x) * drawn).clamp(region.low, region.high)


def _linearise(model: Access, rows: _Rows, rivals: Int[Tensor, "rivals rows"]) -> _Plane:
    """The nearest of the hyperplanes at which some rivals would overtake the true class."""
    count, size = rivals.shape
    classes = torch.stack((rivals.flatten(), rows.y.repeat(count)), 1)

    def lead(logits: Tensor, piece: slice) -> Tensor:
        rival, true = logits.gather(1, classes[piece]).unbind(1)
        return rival - true

    _, value, gradient = model.climb(rows.at.repeat(count, *[1] * (rows.at.dim() - 1)), lead)
    # What is not finite says nothing; such a row counts as flat, and does not move.
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    w = rows.region.reachable(gradient.unflatten(0, (count, size))).flatten(2)
    sound, value = value.isfinite().view(count, size), value.view(count, size)
    if len(rows.rivals) == 1:  # nothing to compare
        chosen, distance = torch.zeros_like(rows.y), torch.zeros_like(value)
    else:
        largest = w.abs().amax(2, keepdim=True)  # divided by, as squares of tiny numbers underflow
        largest = largest + (largest == 0)
        slope = torch.linalg.vector_norm(w / largest, ord=_DUALS[rows.region.norm], dim=2)
        distance = torch.where(sound, value.abs() / (slope * largest.squeeze(2)), torch.inf)
        distance = torch.where(slope > 0, distance, torch.inf)
        chosen = distance.argmin(0)
    at = chosen, torch.arange(size, device=chosen.device)
    plain = torch.where(sound[at], value[at], 0.0)
    return _Plane(distance[at], plain, w[at] * sound[at][:, None])
