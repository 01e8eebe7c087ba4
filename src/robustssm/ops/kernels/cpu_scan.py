"""Diagonal systems in compiled code: csrc/scan.h."""

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from robustssm.ops.kernels import native

_PARTS = 8  # of the batch, each with sums of its own: work for so many threads

_constant = native.function("constant_scan", "ppp" + "iiiii")
_system = native.function("system_scan", "p" * 13 + "iiiiii")
_averages = native.function("moving_average", "ppppp" + "iiiiii")
_average_gradients = native.function("moving_average_gradients", "p" * 9 + "iiiiii")


def constant(
    a: Inexact[Tensor, "*channels"], b: Inexact[Tensor, "batch time *channels"], *, reverse: bool
) -> Inexact[Tensor, "batch time *channels"]:
    """`ops.scan.linear_scan` for factors that are the same at every step and for every example."""
    a, b = _dense(a, b)
    h = torch.empty_like(b)
    batch, time, pairs = *b.shape[:2], b.is_complex()
    _constant(a, b, h, batch, time, a.numel() * (1 + pairs), int(pairs), int(reverse))
    return h


def system(
    u: Float[Tensor, "batch length channels"],
    into: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    a: Complex[Tensor, " modes"],
    skip: Float[Tensor, " channels"],
    *,
    keep: bool = False,
    adjoint: bool = False,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch length row"] | None]:
    """What `ops.mimo.mimo_scan` returns, and its states to keep; or, of dy, what it adds to du.

    Args:
        u: What drives the system; for the adjoint, dy.
        into: (2 modes, channels).
        out: (2 modes, channels).
        a: (modes,).
        skip: (channels,).
        keep: Whether the states are returned, in the order that `system_gradients` takes.
        adjoint: Whether the gradient with respect to u is computed, from that to y.
    """
    u, into, out, a, skip = _dense(u, into, out, a, skip)
    y = torch.empty_like(u)
    x = u.new_empty(*u.shape[:2], _row(a)) if keep or _few(len(u)) else None
    ways = (out, into) if adjoint else (into, out)
    sizes = *u.shape, len(a), int(adjoint), len(u)
    _system(u, *ways, a, skip, y, x, *[None] * 6, *sizes)
    return y, x if keep else None


def system_gradients(
    dy: Float[Tensor, "batch length channels"],
    u: Float[Tensor, "batch length channels"],
    states: Float[Tensor, "batch length row"],
    into: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    a: Complex[Tensor, " modes"],
    skip: Float[Tensor, " channels"],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, into, out, a and skip, in sums of a fixed order."""
    dy, u, into, out, a, skip = _dense(dy, u, into, out, a, skip)
    channels, modes, row = u.shape[2], len(a), _row(a)
    parts = min(len(u), _PARTS)
    du = torch.empty_like(u)
    d_into, d_out = u.new_zeros(2, parts, channels, row)
    d_a, d_skip = u.new_zeros(parts, row), u.new_zeros(parts, channels)
    sums = d_into, d_out, d_a, d_skip
    sizes = *u.shape, modes, 1, parts
    slopes = torch.empty_like(states) if _few(parts) else None
    _system(dy, out, into, a, skip, du, slopes, u, states, *sums, *sizes)
    # Padding goes, and modes come first.
    d_into, d_out, d_a = (
        x.sum(0).unflatten(-1, (2, -1))[..., :modes].flatten(-2).T
        for x in (d_into, d_out, d_a[:, None])
    )
    return du, d_into, d_out, torch.complex(*d_a[:, 0].chunk(2)), d_skip.sum(0)


def _few(parts: int) -> bool:
    """Whether threads need smaller pieces of work, which meet in memory."""
    return parts < torch.get_num_threads()


def _row(a: Tensor) -> int:
    """Floats in a row of states: real parts, padded to whole vectors, and imaginary parts."""
    width = native.vector_width()
    return 2 * width * -(-len(a) // width)


def _dense(*tensors: Tensor) -> list[Tensor]:
    return [x.resolve_conj().contiguous() for x in tensors]


def averages(
    u: Float[Tensor, "batch length channels"],
    q: Float[Tensor, "ways averages channels"],
    c: Float[Tensor, "ways averages channels"],
    skip: Float[Tensor, " channels"],
    *,
    adjoint: bool = False,
) -> Float[Tensor, "batch length channels"]:
    """What `ops.moving_average` returns; for the adjoint, of dy, what that adds to du."""
    u, q, c, skip = _dense(u, q, c, skip)
    y = torch.empty_like(u)
    _averages(u, q, c, skip, y, *u.shape, *_counts(q), int(adjoint))
    return y


def averages_gradients(
    dy: Float[Tensor, "batch length channels"],
    u: Float[Tensor, "batch length channels"],
    q: Float[Tensor, "ways averages channels"],
    c: Float[Tensor, "ways averages channels"],
    skip: Float[Tensor, " channels"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to u, q, c and skip, in sums of a fixed order."""
    dy, u, q, c, skip = _dense(dy, u, q, c, skip)
    parts = min(len(u), _PARTS)
    du = torch.empty_like(u)
    dq, dc = (u.new_empty(parts, *q.shape) for _ in range(2))
    d_skip = u.new_empty(parts, len(skip))
    _average_gradients(u, dy, q, c, skip, du, dq, dc, d_skip, *u.shape, *_counts(q), parts)
    return du, dq.sum(0), dc.sum(0), d_skip.sum(0)


def _counts(q: Tensor) -> tuple[int, int]:
    """Averages and ways."""
    return q.shape[1], q.shape[0]
