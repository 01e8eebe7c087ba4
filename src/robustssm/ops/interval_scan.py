"""Bounds on what a selective scan can put out, for every input within a box.

Legend: b batch, t time, d channels of the scan, n states per channel, r rank of the step sizes.

Box arithmetic is sound and loose: it lets every state, and every place where one number is
used, take its own worst value. Nothing is rounded outwards, so bounds hold up to the rounding of
float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import Inapplicable, violation
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.response import convolve, two_sided_response
from robustssm.ops.selective_scan import Discretization, hold_gain, selective_scan


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """All tensors between two, entry by entry."""

    low: Float[Tensor, "*shape"]
    high: Float[Tensor, "*shape"]

    @classmethod
    def around(
        cls, centre: Float[Tensor, "batch time channels"], radius: Float[Tensor, " batch"]
    ) -> "Box":
        """The box of one radius for each example.

        Raises:
            ValueError: If a radius is negative.
        """
        if bool((radius < 0).any()):
            must = "be at least 0 for every example"
            raise ValueError(violation("`Box.around(radius=...)`", must, radius.min().item()))
        return cls(low=centre - radius[:, None, None], high=centre + radius[:, None, None])

    @property
    def centre(self) -> Float[Tensor, "..."]:
        """Half way between the ends."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Float[Tensor, "..."]:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2

    def distance(self, point: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The largest |member - point|, entry by entry."""
        return torch.maximum(self.high - point, point - self.low)

    def __add__(self, other: "Box") -> "Box":
        return Box(low=self.low + other.low, high=self.high + other.high)

    def __mul__(self, other: "Box") -> "Box":
        """Of every member of one with every member of the other."""
        low, high = self.low, self.high
        ends = [low * other.low, low * other.high, high * other.low, high * other.high]
        smaller, larger = torch.minimum(ends[0], ends[1]), torch.maximum(ends[0], ends[1])
        return Box(
            low=torch.minimum(smaller, torch.minimum(ends[2], ends[3])),
            high=torch.maximum(larger, torch.maximum(ends[2], ends[3])),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectiveSystem:
    """A selective scan together with the maps by which its input u chooses its parameters.

    (r, B, C) = select u, delta = softplus(steps r + bias), and then `selective_scan`.
    """

    select: Float[Tensor, "selected channels"]
    """Rows in the order r, B, C: rank + 2 state of them."""
    steps: Float[Tensor, "channels rank"]
    bias: Float[Tensor, " channels"]
    A: Float[Tensor, "channels state"]
    D: Float[Tensor, " channels"]
    discretization: Discretization = "euler"

    def __post_init__(self) -> None:
        state, rank = self.A.shape[1], self.steps.shape[1]
        if len(self.select) != rank + 2 * state:
            must = f"have rank + 2 state = {rank} + 2 * {state} rows"
            got = f"{len(self.select)} rows"
            raise ValueError(violation("`SelectiveSystem(select=...)`", must, got))

    def delta(
        self, u: Float[Tensor, "batch time channels"]
    ) -> Float[Tensor, "batch time channels"]:
        """The step sizes that `u` chooses."""
        return F.softplus(u @ self._into_steps().T + self.bias)

    def run(self, u: Float[Tensor, "batch time channels"]) -> Float[Tensor, "batch time channels"]:
        """What the scan makes of `u`."""
        state, rank = self.A.shape[1], self.steps.shape[1]
        B, C = (u @ self.select[rank:].T).split([state, state], -1)
        steps = u @ self._into_steps().T + self.bias
        choice: Discretization = self.discretization
        return selective_scan(u, F.softplus(steps), self.A, B, C, self.D, discretization=choice)

    def bounds(self, u: Box) -> Box:
        """An interval that contains `run` of every input in `u`, entry by entry.

        Each of delta, B and C is bounded by the box of all channels at its step; then
        A[t] = exp(delta[t] A) and the gain of B, both monotone in delta, and the scan itself
        follow in interval arithmetic. As the box shrinks to a point the interval does, with the
        radius in proportion.

        Args:
            u: Inputs, (batch, time, channels).

        Raises:
            Inapplicable: If an entry of A is positive: growing modes are not covered.
        """
        if bool((self.A > 0).any()):
            raise Inapplicable(
                "Bounds of a selective scan are written for A <= 0, where exp(delta A) falls as "
                f"the step size rises; got an A with {int((self.A > 0).sum())} positive entries."
            )
        state, rank = self.A.shape[1], self.steps.shape[1]
        steps = _affine(u, self._into_steps(), self.bias)
        delta = Box(low=F.softplus(steps.low)[..., None], high=F.softplus(steps.high)[..., None])
        selected = _affine(u, self.select[rank:])
        B, C = (
            Box(low=low[:, :, None], high=high[:, :, None])
            for low, high in zip(
                selected.low.split([state, state], -1),
                selected.high.split([state, state], -1),
                strict=True,
            )
        )
        decay = Box(low=torch.exp(delta.high * self.A), high=torch.exp(delta.low * self.A))
        entering = Box(low=u.low[..., None], high=u.high[..., None])
        h = _nonnegative_scan(decay, self._gain(delta) * B * entering)
        read = C * h
        skip = entering * Box(low=self.D[:, None], high=self.D[:, None])
        return Box(
            low=read.low.sum(-1) + skip.low[..., 0], high=read.high.sum(-1) + skip.high[..., 0]
        )

    def _into_steps(self) -> Tensor:
        """The map from u to the arguments of softplus, as one: a bound through r is looser."""
        return self.steps @ self.select[: self.steps.shape[1]]

    def _gain(self, delta: Box) -> Box:
        if self.discretization == "euler":
            return delta
        low, high = (
            hold_gain(*torch.broadcast_tensors(ends, self.A)) for ends in (delta.low, delta.high)
        )
        return Box(low=low, high=high)


def linear_bounds(recurrence: Recurrence, u: Box) -> Box:
    """What a time-invariant system can put out within the box: exact, every end is attained.

    H centre +- |H| radius, in float64; for a box of one radius the largest deviation is that radius
    times the l1 norm of the impulse response over the length of the sequence.

    Args:
        recurrence: A time-invariant system that is the same for every example; it may have a
            `backward` part.
        u: Inputs, (batch, time, channels).

    Raises:
        Inapplicable: If the system varies with time or example.

    Source: none: the l1 norm is the textbook gain from linf to linf.
        Oracle: dense |H| (tests/ops/test_interval_scan.py).
    """
    response = two_sided_response(recurrence, u.low.shape[1])
    centre, spread = convolve(response, u.centre), convolve(response.abs(), u.radius)
    return Box(low=centre - spread, high=centre + spread)


def largest_change(
    change: Callable[[Tensor], Tensor],
    start: Float[Tensor, "batch time channels_in"],
    radius: Float[Tensor, " batch"],
    *,
    allowed: Float[Tensor, "batch time channels_out"],
    steps: int,
) -> Float[Tensor, " batch"]:
    """The largest |entry| of a change that sign ascent finds within a box: a bound from below.

    It climbs one output at a time: in the first half of the steps the one with the largest bound,
    then, from the best point so far, the one that was largest there. The first step goes to a
    corner of the box, where a linear system attains its bound.

    Args:
        change: A perturbation of the input, (batch, time, channels), to the change of the output.
        start: The perturbation to begin with, within the radius.
        radius: Largest |entry| of the perturbation of each example.
        allowed: Bounds on the change, which say what to climb first.
        steps: Gradients taken; one is enough for a linear system.
    """
    limit = radius[:, None, None]
    target = allowed.flatten(1).argmax(1, keepdim=True)
    point, best_point, best, best_target = start, start, torch.zeros_like(radius), target
    for step in range(steps + 1):
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            y = change(point).flatten(1)
        found, where = y.detach().abs().max(1)
        better = found > best
        best = torch.where(better, found, best)
        best_point = torch.where(better[:, None, None], point.detach(), best_point)
        best_target = torch.where(better[:, None], where[:, None], best_target)
        if step == steps:
            break
        with torch.enable_grad():
            value = y.gather(1, target)
            climbed = torch.where(value < 0, -value, value).sum()
        (gradient,) = torch.autograd.grad(climbed, point)
        reach = 2.0 if step == 0 else 0.5
        point = (point.detach() + reach * limit * gradient.sign()).clamp(-limit, limit)
        if step + 1 == (steps + 1) // 2 and steps > 1:
            point, target = best_point, best_target
    return best


def _affine(u: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    """Exact, for every row of the weight alone."""
    centre, spread = u.centre @ weight.T, u.radius @ weight.abs().T
    centre = centre if bias is None else centre + bias
    return Box(low=centre - spread, high=centre + spread)


def _nonnegative_scan(factor: Box, added: Box) -> Box:
    """h[t] = a[t] h[t-1] + b[t] for intervals a >= 0 and b."""
    low, high = torch.zeros_like(added.low[:, 0]), torch.zeros_like(added.low[:, 0])
    lows, highs = [], []
    steps = zip(
        *(x.unbind(1) for x in (factor.low, factor.high, added.low, added.high)), strict=True
    )
    for a_low, a_high, b_low, b_high in steps:
        low = torch.minimum(a_low * low, a_high * low) + b_low
        high = torch.maximum(a_low * high, a_high * high) + b_high
        lows.append(low)
        highs.append(high)
    return Box(low=torch.stack(lows, 1), high=torch.stack(highs, 1))
