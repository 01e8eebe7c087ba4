"""HiPPO-LegS and its relatives: state matrices that remember the past as Legendre coefficients.

All in float64; a layer rounds once, at the end.
"""

import math
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

Spectrum = Literal["lin", "inv", "legs", "real"]


def legs(state: int) -> tuple[Float[Tensor, "state state"], Float[Tensor, " state"]]:
    """The scaled Legendre measure: A and B of x' = A x + B u.

    A[n, k] = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above;  B[n] = sqrt(2n+1).

    Args:
        state: Number of coefficients, at least 1.

    Source: gu2020hippo, theorem 2 (with the time scale 1/t left to the step size).
    """
    root = torch.sqrt(2 * torch.arange(state, dtype=torch.float64) + 1)
    A = -torch.outer(root, root).tril(-1) - torch.diag(torch.arange(1, state + 1).double())
    return A, root


def legs_low_rank(
    state: int,
) -> tuple[Complex[Tensor, " pairs"], Complex[Tensor, " pairs"], Complex[Tensor, " pairs"]]:
    """LegS in coordinates where it is diagonal minus rank one: A = diag(eigenvalues) - P P^*.

    A + p p^T = -I/2 + skew with p[n] = sqrt(n + 1/2) is normal, so a unitary V diagonalises it, and
    (A, B, p) become (V^* A V, V^* B, V^* p). One of each conjugate pair is returned, the one with
    positive imaginary part, by falling imaginary part. A column of V is free up to a phase; the one
    that makes B positive is taken, so that the result does not depend on the eigensolver.

    Args:
        state: Number of coefficients, a positive even number.

    Returns:
        Eigenvalues (real part -1/2), P and B, each (state / 2,).

    Source: gu2022efficiently, theorem 1 and appendix C.1. The official code also clips Im B to
        [-2, 2], which depends on the arbitrary phases and is left out.
    """
    A, B = legs(state)
    p = B / math.sqrt(2)
    skew = A + torch.outer(p, p) + torch.eye(state, dtype=A.dtype) / 2
    frequencies, V = torch.linalg.eigh(-1j * skew)
    keep = torch.arange(state - 1, state // 2 - 1, -1)
    rotated = V.mH[keep] @ B.to(V.dtype)
    magnitude = rotated.abs().to(V.dtype)
    eigenvalues = torch.complex(torch.full((state // 2,), -0.5, dtype=A.dtype), frequencies[keep])
    return eigenvalues, magnitude / math.sqrt(2), magnitude


def diagonal(spectrum: Spectrum, pairs: int) -> Complex[Tensor, " pairs"]:
    """Initial eigenvalues of S4D, one of each conjugate pair, n = 0 .. pairs - 1, N = 2 * pairs.

    lin: -1/2 + i pi n.   inv: -1/2 + i (N / pi) (N / (2n+1) - 1).   legs: those of `legs_low_rank`.
    real: -(n + 1).

    Args:
        spectrum: Which of the four.
        pairs: Half the state size, at least 1.

    Source: gu2022parameterization, equations 7 (inv), 8 (lin), 9 (legs) and section 4.3 (real).
    """
    n = torch.arange(pairs, dtype=torch.float64)
    half = torch.full_like(n, -0.5)
    if spectrum == "lin":
        return torch.complex(half, math.pi * n)
    if spectrum == "inv":
        total = 2 * pairs
        return torch.complex(half, total / math.pi * (total / (2 * n + 1) - 1))
    if spectrum == "legs":
        return legs_low_rank(2 * pairs)[0]
    return torch.complex(-(n + 1), torch.zeros_like(n))
