"""From continuous time, h' = a h + b u, to steps, h[t] = A h[t-1] + B u[t].

Legend: g group, s state, i input of a group. Every function takes the step size last.
"""

import torch
from jaxtyping import Float, Inexact
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
) -> tuple[Float[Tensor, "groups twice twice"], Float[Tensor, "groups twice"]]:
    """The trapezoidal rule for diag(a) - p p^*, states in conjugate pairs, in real coordinates.

    The full system has states (x, conj x); here it is written for sqrt(2) (Re x, Im x), a unitary
    change of coordinates, in which everything is real and the low-rank term stays q q^T with q the
    same coordinates of p. The inverse is that of a diagonal plus rank one (Woodbury).

    Args:
        a: Diagonal, one entry per pair, (groups, state), complex. Re a < 0 makes ||A||_2 < 1.
        p: Low-rank factor, (groups, state), complex.
        b: Input vector, (groups, state), complex.
        dt: Step size, (groups,), positive.

    Returns:
        A, (groups, 2 state, 2 state), and B, (groups, 2 state), real.

    Source: gu2022efficiently, appendix C.2. Oracle: `bilinear_dense`.
    """
    step = dt[:, None]
    inverse = 1 / (1 - step / 2 * a)
    q, q_inverse = real_pairs(p), real_pairs(inverse * p)
    # In these coordinates E multiplies by `inverse`, and E^T by its conjugate.
    q_left = real_pairs(inverse.conj() * p)
    scale = step / 2 / (1 + step / 2 * (q * q_inverse).sum(-1, keepdim=True))
    b_inverse = real_pairs(inverse * b)
    B = step * (b_inverse - scale * (q_left * real_pairs(b)).sum(-1, keepdim=True) * q_inverse)
    re, im = torch.diag_embed(inverse.real), torch.diag_embed(inverse.imag)
    E = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
    resolvent = E - (scale * q_inverse)[..., :, None] * q_left[..., None, :]
    identity = torch.eye(resolvent.shape[-1], dtype=resolvent.dtype, device=resolvent.device)
    return 2 * resolvent - identity, B


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
