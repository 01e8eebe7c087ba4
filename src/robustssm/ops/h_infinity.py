"""The largest gain of a stable system over all frequencies, between two certain numbers.

Legend: c cell of frequencies, n state, i input and o output of a group. z = e^(-i w) and
R = (1 - A z)^-1, so the response at w is G = C R B + D for each direction, conjugate for the one
that runs backwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from robustssm.core.errors import Inapplicable
from robustssm.ops.gains import spectral_norm
from robustssm.ops.recurrence import Recurrence, spectral_radius
from robustssm.ops.response import in_float64

_FIRST_CELLS = 16
_HALVINGS = 60
_CHUNK = 1 << 22
"""Complex numbers that the matrices of cells evaluated together may have."""


class Interval(NamedTuple):
    """A quantity that is known to lie between two numbers, one of each per group."""

    lower: Float[Tensor, " groups"]
    upper: Float[Tensor, " groups"]


class _System(NamedTuple):
    """One direction; outputs are real because conjugate states stand beside each other."""

    A: Tensor
    B: Complex[Tensor, "groups state inputs"]
    C: Complex[Tensor, "groups outputs state"]


class _Expansion(NamedTuple):
    """G at the middle of a cell, its slope in z, and what bounds the rest."""

    value: Complex[Tensor, "cells outputs inputs"]
    slope: Complex[Tensor, "cells outputs inputs"]
    curvature: Float[Tensor, " cells"]
    resolvent: Float[Tensor, " cells"]


@torch.no_grad()
def h_infinity(recurrence: Recurrence, *, tolerance: float = 1e-3) -> Interval:
    """The largest singular value of G over all frequencies: the l2 gain over unlimited time.

    It bounds the l2 gain of every finite length. Cells of frequencies are halved until none can
    hold more than (1 + tolerance) times the largest value seen. With d = z - z0 in a cell,
    G = G0 + d C R0 A R0 B + rest, ||rest|| <= |d|^2 ||C R0 A|| ||R0 A R0 B|| / (1 - |d| ||R0 A||);
    the norm of the linear part is convex in d, so its largest value is at a corner of a triangle
    around the arc of the d.

    Args:
        recurrence: A stable time-invariant system; it may run both ways.
        tolerance: Relative width of the interval, positive.

    Returns:
        The largest value found, which is attained, and a bound on all others; certain up to
        rounding.

    Raises:
        Inapplicable: If the system varies with time or example, or has an eigenvalue of modulus 1
            or more: its response then grows, or never ends, and has no such bound. Gains over a
            finite length still exist (`ops.gains`).
    """
    _require_stable(recurrence)
    D = recurrence.D.double()
    systems = [_with_conjugates(way) for way in in_float64(recurrence).directions]
    skip = sum(way.D.double() for way in recurrence.directions[1:]) + D
    groups = torch.arange(len(D), device=D.device).repeat_interleave(_FIRST_CELLS)
    half = D.new_full((len(groups),), torch.pi / (2 * _FIRST_CELLS))
    middle = half * (2 * torch.arange(_FIRST_CELLS, device=D.device).repeat(len(D)) + 1)
    best, upper = D.new_zeros(len(D)), D.new_zeros(len(D))
    for depth in range(_HALVINGS + 1):
        value, bound = _evaluate(systems, skip, groups, middle, half)
        best = best.scatter_reduce(0, groups, value, "amax")
        open_ = bound > (1 + tolerance) * best[groups]
        if depth == _HALVINGS:
            open_ = torch.zeros_like(open_)
        upper = upper.scatter_reduce(0, groups[~open_], bound[~open_], "amax")
        if not open_.any():
            break
        groups, middle, half = groups[open_].repeat(2), middle[open_], half[open_] / 2
        middle, half = torch.cat([middle - half, middle + half]), half.repeat(2)
    return Interval(best, torch.maximum(upper, best))


def _require_stable(recurrence: Recurrence) -> None:
    for way in recurrence.directions:
        if not (way.time_invariant and way.input_independent):
            raise Inapplicable(
                "A gain over frequency needs a recurrence that is the same at every step and for "
                f"every example; got A {tuple(way.A.shape)}. Ask for gains of its Jacobian instead."
            )
        radius = spectral_radius(way).max().item()
        if not radius < 1:
            raise Inapplicable(
                "A gain over unlimited time needs all eigenvalues inside the unit circle; the "
                f"largest has modulus {radius:.6g}. Ask for `l2_gain` at a finite length."
            )


def _with_conjugates(way: Recurrence) -> _System:
    """Re C h as a sum over the states and their conjugates."""
    groups = way.groups
    A, B, C = (M[0, 0].expand(groups, *M.shape[3:]) for M in (way.A, way.B, way.C))
    scale = 1.0 if way.conjugate_pairs else 0.5
    if not any(M.is_complex() for M in (A, B, C)):
        return _System(*(M.to(torch.complex128) for M in (A, B, C)))
    A, B, C = (M.to(torch.complex128) for M in (A, B, scale * C))
    if way.diagonal:
        A = torch.cat([A, A.conj()], -1)
    else:
        zero = torch.zeros_like(A)
        A = torch.cat([torch.cat([A, zero], -1), torch.cat([zero, A.conj()], -1)], -2)
    return _System(A, torch.cat([B, B.conj()], 1), torch.cat([C, C.conj()], 2))


def _evaluate(
    systems: Sequence[_System],
    skip: Float[Tensor, "groups outputs inputs"],
    groups: Int[Tensor, " cells"],
    middle: Float[Tensor, " cells"],
    half: Float[Tensor, " cells"],
) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
    """||G|| in the middle of every cell, and a bound on it within the cell."""
    size = skip[0].numel() + sum(s.A[0].numel() + s.B[0].numel() + s.C[0].numel() for s in systems)
    values, bounds = [], []
    for chunk in torch.arange(len(groups), device=groups.device).split(max(1, _CHUNK // size)):
        g, w, delta = groups[chunk], middle[chunk], half[chunk]
        z = torch.polar(torch.ones_like(w), -w)
        turn = torch.polar(torch.ones_like(w), delta)
        # Ends of the arc, and where its tangents there meet.
        corners = torch.stack([z * turn, z * turn.conj(), z / delta.cos()]) - z
        value = skip[g].to(torch.complex128)
        linear = value.expand(3, *value.shape)
        rest = torch.zeros_like(delta)
        for k, system in enumerate(systems):
            part = _expand(_System(*(M[g] for M in system)), z)
            line = part.value + corners[..., None, None] * part.slope
            value = value + (part.value if k % 2 == 0 else part.value.conj())
            linear = linear + (line if k % 2 == 0 else line.conj())
            room = 1 - delta * part.resolvent
            rest = rest + torch.where(room > 0, delta**2 * part.curvature / room, torch.inf)
        values.append(spectral_norm(value))
        bounds.append(spectral_norm(linear).amax(0) + rest)
    return torch.cat(values), torch.cat(bounds)


def _expand(system: _System, z: Complex[Tensor, " cells"]) -> _Expansion:
    A, B, C = system
    if A.ndim == 2:
        R = 1 / (1 - A * z[:, None])
        RB, RA = R[..., None] * B, R * A
        CRA, RARB, resolvent = C * RA[:, None], RA[..., None] * RB, RA.abs().amax(-1)
    else:
        identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        solved = torch.linalg.solve(identity - z[:, None, None] * A, torch.cat([B, A], -1))
        RB, RA = solved[..., : B.shape[-1]], solved[..., B.shape[-1] :]
        CRA, RARB = C @ RA, RA @ RB
        resolvent = torch.linalg.matrix_norm(RA)  # Frobenius, at least the spectral norm
    return _Expansion(C @ RB, CRA @ RB, spectral_norm(CRA) * spectral_norm(RARB), resolvent)
