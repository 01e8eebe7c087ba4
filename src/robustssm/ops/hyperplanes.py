"""The shortest way onto a hyperplane inside a box, under linf, l2 and l1.

Axes: rows, d. Every coordinate may move one way only, towards the plane, at most by its room in the
box; "gain" is how much nearer to the plane that takes the point, in units of <w, v>.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.balls import Norm

_FIRST = 16  # largest weights of a row that l1 looks at before it sorts the whole row


def project(
    points: Float[Tensor, "rows d"],
    normals: Float[Tensor, "rows d"],
    offsets: Float[Tensor, " rows"],
    *,
    norm: Norm,
    low: Float[Tensor, "rows d"],
    high: Float[Tensor, "rows d"],
) -> Float[Tensor, "rows d"]:
    """The point of {v : <w, v> = b, low <= v <= high} nearest to each point; see `step`."""
    ends = torch.minimum(low, points), torch.maximum(high, points)
    move = step(points, normals, offsets, norm=norm, low=low, high=high)
    return (points + move).clamp(*ends)


def step(
    points: Float[Tensor, "rows d"],
    normals: Float[Tensor, "rows d"],
    offsets: Float[Tensor, " rows"],
    *,
    norm: Norm,
    low: Float[Tensor, "rows d"],
    high: Float[Tensor, "rows d"],
) -> Float[Tensor, "rows d"]:
    """The shortest move that takes each point onto its hyperplane without leaving the box.

    With s = sign(b - <w, t>) and room[i] the way from t[i] to the end of the box in direction
    s w[i], the move is s sign(w) r, where
    linf: r[i] = min(c, room[i]); l2: r[i] = min(c |w[i]|, room[i]), with c such that the plane is
    met; l1: r[i] = room[i] in order of falling |w[i]|, the last one as far as needed. Where plane
    and box do not meet, r = room: the corner of the box nearest to the plane. Coordinates with
    w[i] = 0 never move.

    Args:
        points: Where moves start, t, in the box; where rounding left one outside, it is widened.
        normals: w; finite. A zero row does not move.
        offsets: b, finite; in float64 they keep the digits that b - <w, t> cancels.
        norm: Which length of the move is least.
        low: Lower ends of the box, finite.
        high: Upper ends; equal to `low` where a coordinate is held.

    Returns:
        Moves in the dtype of `points`, the same for every scale of (w, b).

    Numerics: c is the solution of a linear equation, not a bracket; the tests hold the plane to
    1e-12 of the sum of |w[i] v[i]| in float64, 2e-6 in float32.
    Source: croce2020minimally, section 3.1. Oracles: linprog, and the sorted solution of the
    optimality conditions (tests/ops/test_hyperplanes.py).
    """
    gap = offsets.double() - torch.linalg.vecdot(normals.double(), points.double())
    largest = normals.abs().amax(1, keepdim=True)
    largest = largest + (largest == 0)
    towards = normals / largest * gap.sign().to(normals.dtype)[:, None]
    side, speed = towards.sign(), towards.abs()
    # The first is the room where side = 1, the second where side = -1; the other one is negative.
    room = torch.maximum(side * (high - points), side * (low - points)).clamp(min=0)
    need = (gap.abs() / largest.squeeze(1)).to(points.dtype)
    if norm == "l1":
        return side * _greedy(speed, room, need)
    if norm == "linf":
        level = _level(speed, room, speed * room, need)[:, None]
    else:
        ends = room / (speed + (speed == 0))
        level = _level(speed.square(), ends, speed * room, need)[:, None] * speed
    return side * torch.fmin(level, room)  # fmin: infinity times a speed of 0 is no number


def _level(weights: Tensor, ends: Tensor, full: Tensor, need: Tensor) -> Tensor:
    """The least c with sum_i min(c weights_i, full_i) >= need, per row; infinity if there is none.

    The sum is concave and linear between neighbouring `ends`, at which coordinates stop gaining.
    Each round goes to where the linear piece at c would meet `need`, so c never passes the
    solution, and is there once no further coordinate stops. The coordinates that have stopped only
    become more, so that d + 1 rounds are enough; a few are usual, and cost less than one sort.
    """
    tiny = torch.finfo(need.dtype).tiny
    possible = need < full.sum(1)
    aim = need.masked_fill(~possible, 0)
    level, before = torch.zeros_like(need), torch.full_like(need, torch.inf)
    while True:
        slope = torch.linalg.vecdot(weights, (ends > level[:, None]).to(weights.dtype))
        goes_on = slope < before
        if not bool(goes_on.any()):
            return level.masked_fill(~possible, torch.inf)
        gain = torch.minimum(level[:, None] * weights, full).sum(1)
        further = (aim - gain).clamp(min=0) / slope.clamp(min=tiny)
        level, before = torch.where(goes_on, level + further, level), slope


def _greedy(speed: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Uses up the room of the fastest coordinates, per row, until their gain is `need`."""
    full = speed * room
    possible = need < full.sum(1)
    first = min(_FIRST, speed.shape[1])
    reach, met = _greedy_among(first, speed, room, full, need)
    left = (possible & ~met).nonzero().squeeze(1)
    if first < speed.shape[1] and len(left):
        rest, _ = _greedy_among(speed.shape[1], speed[left], room[left], full[left], need[left])
        reach = reach.index_copy(0, left, rest)
    return torch.maximum(reach, room * ~possible[:, None])


def _greedy_among(
    count: int, speed: Tensor, room: Tensor, full: Tensor, need: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with the `count` fastest only, and for which rows these are enough."""
    fastest, order = speed.topk(count, dim=1)
    gains = full.gather(1, order)
    total = gains.cumsum(1)
    used = torch.minimum((need[:, None] - (total - gains)).clamp(min=0), gains)
    reach = torch.minimum(used / (fastest + (fastest == 0)), room.gather(1, order))
    return torch.zeros_like(room).scatter(1, order, reach), total[:, -1] >= need
