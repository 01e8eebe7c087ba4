"""Fast adaptive boundary attack (croce2020minimally): the nearest misclassified point."""

import functools
import itertools
from abc import abstractmethod
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
from robustssm.ops.balls import Norm, over

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


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

    def nearer(self, other: "_Plane") -> "_Plane":
        """The nearer of two, per row."""
        closer = other.distance < self.distance
        pairs = zip(other, self, strict=True)
        return _Plane(*(torch.where(over(closer, b), a, b) for a, b in pairs))


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
        clean, streams = model.logits(x), noise.rows(len(x))
        rivals, norms = self._rivals(clean, y), norms.masked_fill(divergence.wrong(clean, y), 0.0)
        at_once = list(torch.arange(len(rivals)).split(len(rivals) if self.together else 1))
        for run, parts in itertools.product(range(self.restarts), at_once):
            left = (norms > region.eps).nonzero().squeeze(1)
            if not len(left):
                break
            rows = _rows(left, y, rivals[parts], region)
            if run > 0:
                kinds = parts.repeat_interleave(len(left))
                stream = streams.select(rows.example).fork("run", run).spread(kinds)
                rows = replace(rows, at=_random_start(rows.region, stream))
            nearest, reached = self._search(model, rows)
            shortest, which = reached.unflatten(0, (len(parts), len(left))).min(0)
            closer = (shortest < norms[left]).nonzero().squeeze(1)
            which, at = which[closer], left[closer]
            points[at], norms[at] = nearest[which * len(left) + closer], shortest[closer]
            part[at] = which + int(parts[0]) if len(rivals) > 1 else run
        return Found(points, -norms, norms <= region.eps, part)

    def _search(self, model: Access, rows: _Rows) -> tuple[Tensor, Tensor]:
        """The nearest misclassified point of every row and its distance; infinity for none."""
        nearest, live = rows.region.x.clone(), torch.arange(len(rows.y), device=rows.y.device)
        reached = torch.full_like(live, torch.inf, dtype=torch.float64)
        for _ in range(self.steps):
            points = self._step(rows, self._plane(model, rows))
            wrong = divergence.wrong(model.logits(points), rows.y)
            move = points.double() - rows.region.x.double()
            norm = hyperplanes.length(move.flatten(1), rows.region.norm)
            closer = wrong & (norm < reached[live])
            at = live[closer]
            nearest[at], reached[at] = points[closer], norm[closer]
            back = rows.region.x + self.beta * (points - rows.region.x)
            rows = replace(rows, at=torch.where(over(wrong, points), back, points))
            within = closer & (norm <= rows.region.eps)
            if self.stop_early and bool(within.any()):
                on = ~torch.isin(rows.example, rows.example[within])
                live, rows = live[on], rows.select(on)
                if not len(live):
                    break
        return nearest, reached

    def _step(self, rows: _Rows, plane: _Plane) -> Tensor:
        """The next points: too far along both ways, mixed, and cut at the box."""
        region, w = rows.region, plane.gradient
        at, x = rows.at.reshape(w.shape), region.x.reshape(w.shape)
        low, high = region.low.reshape(w.shape), region.high.reshape(w.shape)
        # A point that rounding put on the boundary itself would stay there: it goes beyond.
        least = 4 * torch.finfo(w.dtype).eps * torch.linalg.vecdot(w.abs(), at.abs())
        lead = torch.where(plane.value.abs() < least, -least, plane.value)
        gaps = torch.cat((-lead, torch.linalg.vecdot(w, at - x) - lead))
        starts, normals = torch.cat((at, x)), w.repeat(2, 1)
        ends = {"low": low.repeat(2, 1), "high": high.repeat(2, 1)}
        ways = hyperplanes.step(starts, normals, gaps, norm=region.norm, **ends)
        near, far = hyperplanes.length(ways, region.norm).chunk(2)
        alpha = torch.where(near + far > 0, near / (near + far), 1.0).clamp(max=self.alpha_max)
        first, second = (starts + self.eta * ways).chunk(2)
        return torch.lerp(first, second, alpha[:, None]).clamp(low, high).reshape(rows.at.shape)

    def _plane(self, model: Access, rows: _Rows) -> _Plane:
        """The nearest hyperplane among those of the rivals; the first of equals."""
        size = len(rows.rivals) if self.together else 1
        planes = (_linearise(model, rows, rivals) for rivals in rows.rivals.split(size))
        return functools.reduce(_Plane.nearer, planes)

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
        return (cls(steps=2), cls(steps=1, restarts=2, together=False, stop_early=False))


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
        ranked = clean.scatter(1, y[:, None], torch.inf).argsort(
            dim=1, descending=True, stable=True
        )
        return ranked[:, 1 : 1 + self.targets].T[:, None]

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Both ways to batch and to stop, and random starts."""
        more = cls(steps=2, restarts=2)
        return (more, replace(more, steps=1, targets=2, together=False, stop_early=False))


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
    length = hyperplanes.length(drawn.flatten(1), region.norm)
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
    distance = torch.zeros_like(value)
    if len(rows.rivals) > 1:
        largest = w.abs().amax(2, keepdim=True)
        largest = largest + (largest == 0)
        slope = hyperplanes.length(
            w / largest, _DUAL[rows.region.norm]
        )  # scaled: tiny squares underflow
        distance = value.abs() / (slope * largest.squeeze(2))
        distance = torch.where(sound & (slope > 0), distance, torch.inf)
    chosen = distance.argmin(0)
    at = chosen, torch.arange(size, device=chosen.device)
    plain = torch.where(sound[at], value[at], 0.0)
    return _Plane(distance[at], plain, w[at] * sound[at][:, None])
