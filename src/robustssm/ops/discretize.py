"""From continuous time, h' = a h + b u, to steps, h[t] = A h[t-1] + B u[t].

Legend: g group, s state, i input of a group. Every function takes the step size last.
"""

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor


def zero_order_hold(
    a: Inexact[Tensor, "#groups state"],
    b: Inexact[Tensor, "#groups state inputs"],
    dt: Float[Tensor, "groups #state"],
) -> tuple[Inexact[Tensor, "groups state"], Inexact[Tensor, "groups state inputs"]]:
    """Discretises a diagonal system for inputs held constant over each step.

    A[n] = exp(dt a[n]),  B[n] = (exp(dt a[n]) - 1) / a[n] * b[n],  and dt b[n] where a[n] = 0.

    Args:
        a: Diagonal of the state matrix, (groups, state), in 1 / unit of dt. Re a < 0 is stable.
        b: Input matrix, (groups, state, inputs).
        dt: Step size, (groups, 1), or (groups, state) for one per state; positive.

    Returns:
        A, (groups, state), and B, (groups, state, inputs).

    Numerics: through expm1, relative error of B below 4e-7 in complex64 for |dt a| in [1e-6, 1e2].
    Source: gu2023mamba, equation 4. Oracle: scipy.signal.cont2discrete.
    """
    z = dt * a
    return torch.exp(z), (dt * expm1_ratio(z))[..., None] * b


def bilinear(
    a: Inexact[Tensor, "#groups state"],
    b: Inexact[Tensor, "#groups state inputs"],
    dt: Float[Tensor, "groups #state"],
) -> tuple[Inexact[Tensor, "groups state"], Inexact[Tensor, "groups state inputs"]]:
    """Discretises a diagonal system by the trapezoidal rule (Tustin); order 2 in dt.

    A[n] = (1 + dt a[n] / 2) / (1 - dt a[n] / 2),  B[n] = dt / (1 - dt a[n] / 2) * b[n].

    Args:
        a: Diagonal of the state matrix, (groups, state). Re a < 0 gives |A| < 1 for every dt > 0.
        b: Input matrix, (groups, state, inputs).
        dt: Step size, (groups, 1), or (groups, state) for one per state; positive.

    Returns:
        A, (groups, state), and B, (groups, state, inputs).

    Source: gu2022efficiently, equation 3. Oracle: scipy.signal.cont2discrete.
    """
    half = dt * a / 2
    return (1 + half) / (1 - half), (dt / (1 - half))[..., None] * b


def bilinear_dense(
    a: Inexact[Tensor, "#groups state again"],
    b: Inexact[Tensor, "#groups state inputs"],
    dt: Float[Tensor, " groups"],
) -> tuple[Inexact[Tensor, "groups state again"], Inexact[Tensor, "groups state inputs"]]:
    """The trapezoidal rule for a full state matrix, by solving with I - dt a / 2.

    A = (I - dt a / 2)^-1 (I + dt a / 2),  B = (I - dt a / 2)^-1 dt b.

    Args:
        a: State matrices, (groups, state, state).
        b: Input matrices, (groups, state, inputs).
        dt: Step size, (groups,), positive.

    Returns:
        A, (groups, state, state), and B, (groups, state, inputs).

    Source: gu2022efficiently, equation 3. Oracle: scipy.signal.cont2discrete.
    """
    step = dt[:, None, None]
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    right = torch.cat([identity + step * a / 2, (step * b).to(a.dtype)], -1)
    solved = torch.linalg.solve(identity - step * a / 2, right)
    return solved[..., : a.shape[-1]], solved[..., a.shape[-1] :]


def bilinear_low_rank(
    a: Inexact[Tensor, "#groups state"],
    p: Inexact[Tensor, "#groups state"],
    b: Inexact[Tensor, "#groups state"],
    dt: Float[Tensor, " groups"],
) -> tuple[Inexact[Tensor, "groups state"], ...]:
    """The trapezoidal rule for diag(a) - p p^*, states in conjugate pairs, kept as rank one.

    The full system has states (x, conj x), so p^* x is 2 Re sum of conj(p) x, and a step is
    x -> e x - q 2 Re sum of r x + b u with d = 1 / (1 - dt a / 2), e = d (1 + dt a / 2),
    q = dt / 2 d p, r = conj(p) (1 + e) / (1 + 2 Re sum of conj(p) q): the inverse is that of a
    diagonal plus rank one (Woodbury).

    Args:
        a: Diagonal, one entry per pair, (groups, state), complex. Re a < 0 is stable.
        p: Low-rank factor, (groups, state), complex.
        b: Input vector, (groups, state), complex.
        dt: Step size, (groups,), positive.

    Returns:
        e, q, r and b of the discrete system, (groups, state) each.

    Source: gu2022efficiently, appendix C.2. Oracle: `bilinear_dense`.
    """
    step = dt[:, None]
    inverse = 1 / (1 - step / 2 * a)
    e = inverse * (1 + step / 2 * a)
    q = step / 2 * inverse * p
    scale = 1 + 2 * (p.conj() * q).real.sum(-1, keepdim=True)
    r = p.conj() * (1 + e) / scale
    moved = step * inverse * b
    taken = 2 * (p.conj() * moved).real.sum(-1, keepdim=True) / scale
    return e, q, r, moved - q * taken


def low_rank_matrix(
    e: Complex[Tensor, "groups state"],
    q: Complex[Tensor, "groups state"],
    r: Complex[Tensor, "groups state"],
) -> Float[Tensor, "groups twice twice"]:
    """The map x -> e x - q 2 Re sum of r x in the real coordinates sqrt(2) (Re x, Im x).

    A unitary change of coordinates of (x, conj x), in which everything is real (`real_pairs`).
    """
    re, im = torch.diag_embed(e.real), torch.diag_embed(e.imag)
    E = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
    return E - real_pairs(q)[..., :, None] * real_pairs(r.conj())[..., None, :]


def real_pairs(v: Inexact[Tensor, "*rows state"]) -> Float[Tensor, "*rows twice"]:
    """sqrt(2) (Re v, Im v): coordinates of (v, conj v) that make conjugate-symmetric maps real."""
    return torch.cat([v.real, v.imag], -1) * 2**0.5


def expm1_ratio(z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """(exp(z) - 1) / z, and its limit 1 at z = 0, with gradients that are finite there.

    Numerics: the series takes over below |z| = 1e-3, where its first left-out term is below 1e-14.
    """
    small = z.abs() < 1e-3
    away = torch.where(small, torch.ones_like(z), z)
    near = torch.where(small, z, torch.zeros_like(z))
    series = 1 + near / 2 * (1 + near / 3 * (1 + near / 4))
    return torch.where(small, series, torch.expm1(away) / away)
