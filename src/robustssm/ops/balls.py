"""Norm balls around an input, cut by a box: projection, direction, uniform samples, distance.

Axes: batch, then the shape of one example; norms run over all axes of an example together.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustssm.core.rng import Noise

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float | Tensor, float | Tensor]
"""Ends of the box: numbers, or tensors that broadcast over the points."""

_ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}

_SLACK = (
    1e-9  # relative; a point this little outside an l2 ball came from rounding and is left alone
)


def project(
    x_adv: Float[Tensor, "batch *shape"],
    x: Float[Tensor, "batch *shape"],
    *,
    norm: Norm,
    eps: float,
    bounds: Bounds,
) -> Float[Tensor, "batch *shape"]:
    """The nearest point, in the Euclidean sense, of ball and box together: one exact projection.

    {z : |z - x| <= eps, low <= z <= high}. For linf this is clipping. For l2 it is
    z(t) = clip(x + t (x_adv - x), low, high) with the largest t in [0, 1] that stays in the ball,
    found by sorting where coordinates meet the box; scaling first and clipping afterwards, as is
    common, stays in the set too but gives another point as soon as a bound is active. For l1 every
    |x_adv - x|[i] is lowered by the same amount, down to 0 and up to the room that the box leaves,
    found by sorting where coordinates reach either (croce2021mind, proposition 2.2).

    Args:
        x_adv: Points to project; a NaN coordinate is taken as that of `x`.
        x: Centres, in the box; where rounding left one outside, the box is widened to hold it.
        norm: "linf", "l2" or "l1".
        eps: Radius, >= 0. At 0 the result is `x`, bit for bit.
        bounds: The box, low <= high; equal ends hold a coordinate where it is.

    Returns:
        Points in the box exactly, at most eps from `x`: coordinates are rounded towards `x`.
    """
    if eps == 0:
        return x.clone()
    low, high = x.clamp(max=bounds[0]), x.clamp(min=bounds[1])  # low and high, widened to hold x
    x_adv = torch.where(x_adv.isnan(), x, x_adv)
    if norm == "linf":
        lower, upper = interval(x, eps=eps, bounds=bounds)
        return x_adv.clamp(lower, upper)
    return _project_rounded(x_adv, x, norm, eps, low, high)


def interval(
    x: Float[Tensor, "batch *shape"], *, eps: float | Tensor, bounds: Bounds
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """The linf ball and the box together: the least and the largest value of each coordinate.

    Args:
        x: Centres; where rounding left one outside the box, the box is widened to hold it.
        eps: Radius, >= 0; a tensor, broadcasting over `x`, for one per coordinate.
        bounds: The box.
    """
    low, high = x.clamp(max=bounds[0]), x.clamp(min=bounds[1])
    below, above = _towards(x - eps, x, eps), _towards(x + eps, x, eps)
    return torch.maximum(below, low), torch.minimum(above, high)


def ascend(gradient: Float[Tensor, "batch *shape"], *, norm: Norm) -> Float[Tensor, "batch *shape"]:
    """The unit vector u of the norm that maximises <gradient, u>: the steepest direction up.

    sign(g) for linf, g / |g| for l2, the sign of the largest coordinate (the first of equals) for
    l1. A zero gradient gives zero; NaN coordinates count as zero.
    """
    gradient = torch.nan_to_num(gradient, nan=0.0)
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        flat = _flat(gradient)
        at = flat.abs().argmax(1, keepdim=True)
        steepest = torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign())
        return steepest.reshape(gradient.shape) if gradient.numel() else gradient
    # Squares of tiny gradients underflow, so the largest coordinate is made 1 before squaring.
    largest = _flat(gradient).abs().amax(1)
    scaled = gradient / over(torch.where(largest > 0, largest, 1.0), gradient)
    length = _flat(scaled).norm(dim=1)
    return scaled / over(torch.where(length > 0, length, 1.0), gradient)


def sample(
    x: Float[Tensor, "batch *shape"], *, norm: Norm, eps: float, noise: Noise
) -> Float[Tensor, "batch *shape"]:
    """Uniform draws from the ball of radius `eps` around `x`, box not considered.

    U(-eps, eps) per coordinate for linf; eps u^(1/d) g / |g| for l2, u uniform and g normal; for
    l1 the same with signed exponential draws and the l1 norm.
    """
    if norm == "linf":
        return x + noise.uniform(like=x, low=-eps, high=eps)
    if norm == "l1":
        spread = noise.signs(like=x) * -noise.uniform(like=x).log()
        direction = spread / over(_flat(spread).norm(dim=1, p=1.0).clamp(min=1e-30), x)
    else:
        direction = ascend(noise.normal(like=x), norm="l2")
    dimension = max(1, x[0:1].numel())
    radius = eps * noise.uniform(len(x), dtype=x.dtype, device=x.device) ** (1 / dimension)
    return x + over(radius, x) * direction


def distance(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], *, norm: Norm
) -> Float[Tensor, " batch"]:
    """The norm of x_adv - x, per example, computed and returned in float64."""
    difference = _flat(x_adv.double() - x.double())
    return difference.norm(dim=1, p=_ORDERS[norm])


def over(
    values: Float[Tensor, " batch"] | Bool[Tensor, " batch"], x: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."] | Bool[Tensor, "batch ..."]:
    """Shapes one value per example so that it broadcasts over the axes of `x`."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1) if x.numel() else x.new_zeros(len(x), 1)


def _towards(z: Tensor, x: Tensor, limit: float | Tensor) -> Tensor:
    """Undoes a rounding of z that took it further than `limit` from x."""
    return torch.where((z - x).abs() > limit, torch.nextafter(z, x), z)


def _project_rounded(
    x_adv: Tensor, x: Tensor, norm: Norm, eps: float, low: Tensor, high: Tensor
) -> Tensor:
    """Projects in float64; what is rounded afterwards is rounded towards `x`."""
    clipped = torch.clamp(x_adv, low, high)
    inside = distance(clipped, x, norm=norm) <= eps * (1 + _SLACK)
    centre = x.double()
    move = (x_adv.double() - centre).clamp(-1e100, 1e100)  # infinities, without overflow of squares
    room = torch.where(move > 0, high.double() - centre, centre - low.double())
    speed, space = _flat(move.abs()), _flat(room)
    if norm == "l2":
        reach = torch.minimum(over(_largest_fraction(speed, space, eps), x) * move.abs(), room)
    else:
        reach = torch.minimum((move.abs() - over(_least_cut(speed, space, eps), x)).clamp(0), room)
        # A cut from lengths far beyond eps is rounded as they are, so that too much may be left.
        reach = reach * over(eps / _flat(reach).sum(1).clamp(min=eps), x)
    moved = centre + move.sign() * reach
    z = moved.to(x.dtype)
    z = torch.where((z.double() - centre).abs() > reach, torch.nextafter(z, x), z)
    return torch.where(over(inside, x), clipped, z.clamp(low, high))


def _least_cut(length: Tensor, room: Tensor, eps: float) -> Tensor:
    """The least c >= 0 with sum_i min(max(length_i - c, 0), room_i) <= eps, per row, exactly.

    The sum falls with c by 1 per coordinate between length_i - room_i and length_i: it is linear
    between two neighbouring ones of these values.
    """
    begins, ends = (length - room).clamp(min=0), length
    at, order = torch.cat((begins, ends), 1).sort(dim=1)
    slopes = torch.cat((torch.ones_like(begins), -torch.ones_like(ends)), 1).gather(1, order)
    slope = slopes.cumsum(1)
    total = torch.minimum(length, room).sum(1, keepdim=True)
    falls = slope[:, :-1] * at.diff(dim=1)
    sums = total - torch.cat((torch.zeros_like(total), falls.cumsum(1)), 1)  # at each value
    segment = ((sums > eps).sum(1, keepdim=True) - 1).clamp(min=0)
    start, excess = at.gather(1, segment), sums.gather(1, segment) - eps
    cut = start + excess.clamp(min=0) / slope.gather(1, segment).clamp(min=1)
    return cut.squeeze(1)


def _largest_fraction(speed: Tensor, room: Tensor, eps: float) -> Tensor:
    """The largest t in [0, 1] with sum_i min(t speed_i, room_i)^2 <= eps^2, per row, exactly.

    Between two neighbouring times at which a coordinate meets its room, the sum is S + t^2 R:
    S from those that have met it, R from those that still move.
    """
    meets = torch.where(speed > 0, room / speed, torch.inf)
    meets, order = meets.sort(dim=1)
    moving = speed.gather(1, order).square()
    stopped = room.gather(1, order).square().cumsum(1)
    later = moving.flip(1).cumsum(1).flip(1)
    later = torch.cat((later, later.new_zeros(len(later), 1)), 1)
    reached = (
        stopped + meets.square() * later[:, 1:] <= eps**2
    )  # NaN at infinite times: not reached
    count = reached.sum(1, keepdim=True)
    s = torch.cat((stopped.new_zeros(len(stopped), 1), stopped), 1).gather(1, count)
    r = later.gather(1, count)
    t = torch.where(r > 0, ((eps**2 - s).clamp(min=0) / r).sqrt(), 1.0)
    return t.squeeze(1).clamp(max=1.0)
