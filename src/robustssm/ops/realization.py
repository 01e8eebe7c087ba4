"""How many states a system really uses, and for how long: Hankel singular values, memory.

Legend: b batch, t time, g group, s and z state, i input and o output of a group.

The Hankel operator takes inputs of the past to outputs of the future: all that the state carries
over. Its rank is the least number of states that would do the same.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import Inapplicable, violation
from robustssm.ops.recurrence import Recurrence, impulse_response, spectral_radius
from robustssm.ops.time_varying import product

_DOUBLINGS = 60


def hankel_singular_values(
    recurrence: Recurrence, length: int | None
) -> Float[Tensor, "batch groups state"]:
    """Singular values of the map from the past inputs to the future outputs of a system.

    Over `length` steps, cut in the middle: from the inputs of the first length // 2 steps to the
    outputs of the others. For a time-invariant system, of the Hankel matrix with blocks
    K[i + j + 1], 0 <= i < length - length // 2, 0 <= j < length // 2, K without D; an infinite
    one where the length is None. They are the square roots of the eigenvalues of P Q, P = sum of
    A^j B B^* A^*j and Q = sum of A^*i A^* C^* C A A^i the Gramians at the cut. All in float64.

    Args:
        recurrence: The system, without `backward` (take its `directions`).
        length: At least 1; that of the system where it varies with time. None: infinite past and
            future, for stable time-invariant systems.

    Returns:
        In falling order, (batch, groups, states); there are twice as many as stored states where
        these are complex, as each then has its conjugate beside it.

    Raises:
        Inapplicable: If the system runs both ways; for an infinite length also if it varies with
            time or has an eigenvalue of modulus 1 or more.
        ValueError: If the system varies over another number of steps.

    Numerics: values below 1e-7 of the largest one of a group are rounding.
    Source: none: the Gramians are textbook. Oracle: SVD of the dense Hankel matrix
        (tests/ops/test_realization.py).
    """
    if recurrence.backward is not None:
        raise Inapplicable(
            "Hankel singular values belong to a causal system, and this recurrence runs both ways. "
            "Ask each of its `directions` for its own."
        )
    A, B, C = _real_response(recurrence)
    if length is not None and length < 1:
        raise ValueError(violation("`length`", "be at least 1, or None", length))
    if recurrence.time_invariant:
        if length is None:
            _require_stable(recurrence)
        A, B, C = _matrix(recurrence, A[:, 0]), B[:, 0], C[:, 0]
        past, future = (None, None) if length is None else (length // 2, length - length // 2)
        P = _gramian(A, B @ B.mH, past)
        Q = _gramian(A.mH, A.mH @ C.mH @ C @ A, future)
    else:
        P, Q = _gramians_along(recurrence, A, B, C, length)
    return _product_roots(P, Q)


def effective_rank(
    values: Float[Tensor, "*rows state"],
) -> Float[Tensor, "*rows"]:
    """Participation ratio (sum s)^2 / sum s^2: n if n values are equal and the others 0.

    It is 0 if all are 0.

    Args:
        values: Nonnegative numbers, such as Hankel singular values, in the last axis.
    """
    total, squares = values.sum(-1), values.square().sum(-1)
    return torch.where(squares > 0, total.square() / squares.clamp(min=1e-300), total)


def weighted_rank(values: Float[Tensor, "batch groups state"]) -> Float[Tensor, ""]:
    """Mean of `effective_rank` over examples and groups, each weighted by its sum of values.

    A group that hardly carries anything over so hardly counts; 0 if none does.
    """
    weights = values.sum(-1)
    mean = (weights * effective_rank(values)).sum() / weights.sum().clamp(min=1e-300)
    return torch.where(weights.sum() > 0, mean, torch.zeros_like(mean))


def memory_horizons(
    recurrence: Recurrence, length: int, *, left: float = 0.01
) -> Float[Tensor, "batch outputs"]:
    """Steps until at most `left` of the energy of an impulse response is still to come.

    The response is that to an impulse at the first step, without D and within `length` steps, its
    energy summed over inputs. For one mode of modulus a and a long sequence: the first k with
    a^(2 k) <= left. 0 where nothing answers.

    Args:
        recurrence: The system, without `backward` (take its `directions`).
        length: At least 1; that of the system where it varies with time.
        left: Part of the energy, above 0 and below 1.

    Returns:
        Whole numbers from 0 to `length`, (batch, groups * outputs).
    """
    bare = replace(recurrence, D=torch.zeros_like(recurrence.D))
    if recurrence.time_invariant and recurrence.input_independent:
        energy = impulse_response(bare, length).square().sum(2).flatten(0, 1)[None]
    else:
        inputs, batch = bare.D.shape[-1], max(len(M) for M in (bare.A, bare.B, bare.C))
        energy = bare.D.new_zeros(())
        for which in range(inputs):
            unit = bare.D.new_zeros(batch, length, recurrence.groups, inputs)
            unit[:, 0, :, which] = 1
            energy = energy + product(bare, unit.flatten(2)).square().mT
    coming = energy.flip(-1).cumsum(-1).flip(-1)
    return (coming > left * coming[..., :1]).sum(-1).to(energy.dtype)


def _real_response(recurrence: Recurrence) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C of all groups, as a system whose C h is real without taking a real part."""
    matrices = recurrence.A, recurrence.B, recurrence.C
    A, B, C = (M.expand(-1, -1, recurrence.groups, *M.shape[3:]) for M in matrices)
    if not any(M.is_complex() for M in (A, B, C)):
        return A.double(), B.double(), C.double()
    A, B, C = (M.to(torch.complex128) for M in (A, B, C))
    read = 1.0 if recurrence.conjugate_pairs else 0.5
    if recurrence.diagonal:
        A = torch.cat([A, A.conj()], -1)
    else:
        zero = torch.zeros_like(A)
        A = torch.cat([torch.cat([A, zero], -1), torch.cat([zero, A.conj()], -1)], -2)
    return A, torch.cat([B, B.conj()], -2), read * torch.cat([C, C.conj()], -1)


def _matrix(recurrence: Recurrence, A: Tensor) -> Tensor:
    return torch.diag_embed(A) if recurrence.diagonal else A


def _require_stable(recurrence: Recurrence) -> None:
    radius = spectral_radius(recurrence).max().item()
    if radius >= 1:
        raise Inapplicable(
            "Hankel singular values over unlimited time need eigenvalues of modulus below 1; the "
            f"largest has {radius:.6g}. Give the length of the sequence instead."
        )


def _gramian(A: Tensor, X: Tensor, length: int | None) -> Tensor:
    """Sum of A^t X A^*t over t < length, by doubling; None: all t, for stable A."""
    if length == 0:
        return torch.zeros_like(X)
    # S and A belong to 1 step; a further binary digit doubles the number of steps, and may add 1.
    power, S = A, X.expand(torch.broadcast_shapes(A.shape, X.shape))
    for digit in "0" * _DOUBLINGS if length is None else f"{length:b}"[1:]:
        added = power @ S @ power.mH
        S, power = S + added, power @ power
        if digit == "1":
            S, power = X + A @ S @ A.mH, A @ power
        if length is None and bool((added.abs() <= 1e-18 * S.abs().amax()).all()):
            break
    return S


def _gramians_along(
    recurrence: Recurrence, A: Tensor, B: Tensor, C: Tensor, length: int | None
) -> tuple[Tensor, Tensor]:
    """P of the steps before the middle and Q of those after, for a system that varies with time."""
    times = max(M.shape[1] for M in (A, B, C))
    if length is None:
        raise Inapplicable(
            "Hankel singular values over unlimited time need a system that is the same at every "
            f"step; this one varies over {times}. Give that length."
        )
    if length != times:
        must, got = f"be that of the system, {times} steps", length
        raise ValueError(violation("`length`", must, got, "Take the recurrence of this input."))
    A, B, C = (M.expand(-1, length, *[-1] * (M.ndim - 2)) for M in (A, B, C))
    P = torch.zeros_like(B[:, 0] @ B[:, 0].mH)
    for t in range(length // 2):
        F = _matrix(recurrence, A[:, t])
        P = F @ P @ F.mH + B[:, t] @ B[:, t].mH
    Q = torch.zeros_like(C[:, 0].mH @ C[:, 0])
    for t in reversed(range(length // 2, length)):
        F = _matrix(recurrence, A[:, t])
        Q = F.mH @ (Q + C[:, t].mH @ C[:, t]) @ F
    return P, Q


def _product_roots(P: Tensor, Q: Tensor) -> Tensor:
    """Square roots of the eigenvalues of P Q, falling."""
    # In units in which every state has energy 1: those of growing modes differ by many decades.
    scale = P.diagonal(dim1=-2, dim2=-1).real.clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    P = P / (scale[..., :, None] * scale[..., None, :])
    Q = Q * (scale[..., :, None] * scale[..., None, :])
    weights, V = torch.linalg.eigh(P)
    root = V * weights.clamp(min=0).sqrt()[..., None, :]
    squares = torch.linalg.eigvalsh(root.mH @ Q @ root).clamp(min=0)
    return squares.sqrt().flip(-1)
