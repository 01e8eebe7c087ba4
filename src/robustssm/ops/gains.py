"""How far a linear time-invariant system can amplify: exact worst cases and what attains them.

Legend: g group, o output and i input of a group, t and s time, l lag, n entry of a vector, k step.
T is the two-sided response and H the matrix of the map from u to y (`ops.response`). Systems that
run both ways are covered. All is computed and returned in float64.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from robustssm.core.rng import Noise
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.response import (
    circulant_product,
    circulant_spectrum,
    operator_matrix,
    two_sided_response,
    window_sums,
)

DENSE_UP_TO = 96
"""Largest matrix H whose singular values are computed at once; Lanczos serves larger ones."""

_CHECK_EVERY = 16
_LANCZOS_GROUPS = 16
"""Groups that take steps together until the slowest is done: few, as every step is kept."""


def linf_gains(recurrence: Recurrence, length: int) -> Float[Tensor, "groups outputs"]:
    """The largest |y| of each output over all u of that length with max|u| <= 1, exactly.

    It is the largest sum of |T| over inputs and lags within reach: a row of |H|. For a causal
    system that is the last row, the l1 norm of the impulse response.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    return window_sums(two_sided_response(recurrence, length).abs()).sum(2).amax(-1)


def linf_gain(recurrence: Recurrence, length: int) -> Float[Tensor, " groups"]:
    """The largest of `linf_gains` over outputs: the largest max|y| for max|u| <= 1."""
    return linf_gains(recurrence, length).amax(-1)


def worst_signs(recurrence: Recurrence, length: int) -> Float[Tensor, "groups inputs length"]:
    """The u with entries -1 and 1 that attains `linf_gain` in every group.

    u[s] = sign T[t - s] for the output and the time t at which the gain is largest.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    T = two_sided_response(recurrence, length)
    rows = window_sums(T.abs()).sum(2).flatten(1).argmax(-1)
    output, time = rows // length, rows % length
    group = torch.arange(len(T), device=T.device)
    lags = length - 1 + time[:, None] - torch.arange(length, device=T.device)
    taps = T[group, output].gather(-1, lags[:, None].expand(-1, T.shape[2], -1))
    return _signs(taps)


def l1_norms(recurrence: Recurrence, length: int) -> Float[Tensor, "groups outputs inputs"]:
    """Sums of |T| over all lags within `length`: they bound every other gain of that length.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    return two_sided_response(recurrence, length).abs().sum(-1)


def l2_gain_bound(recurrence: Recurrence, length: int) -> Float[Tensor, " groups"]:
    """An upper bound on `l2_gain`, cheap and certain.

    H is a block Toeplitz matrix, a corner of a circulant of twice its size; the norm of that is
    the largest singular value of the discrete Fourier transform of T over its 2 * length
    frequencies. The bound becomes exact as the length passes the memory of the system.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    spectrum = circulant_spectrum(two_sided_response(recurrence, length))
    return spectral_norm(spectrum.movedim(-1, 1)).amax(-1)


@torch.no_grad()
def l2_gain(
    recurrence: Recurrence, length: int, *, tolerance: float = 1e-6, steps: int = 300
) -> Float[Tensor, " groups"]:
    """The largest ||y||_2 over all u of that length with ||u||_2 <= 1: sigma_max of H.

    Small matrices are decomposed, larger ones met by Lanczos' method on H^T H, applied by FFT, from
    a fixed random start, until the residual is below `tolerance` of the eigenvalue.

    Args:
        recurrence: A time-invariant system.
        length: Number of steps, at least 1.
        tolerance: Relative residual of H^T H at which Lanczos' method stops.
        steps: The most steps it may take.

    Returns:
        sigma_max per group. Never above the true value but for rounding; `l2_gain_bound` is the
        certain bound from the other side.

    Raises:
        Inapplicable: As `two_sided_response`.

    Numerics: within 3e-12 of the dense decomposition on 24 channels of S4, S4D and Mega's averages
        at length 784 (1.1e-7 with tolerance 1e-5). Oracle: `l2_gain_reference`.
    """
    T = two_sided_response(recurrence, length)
    if max(T.shape[1:3]) * length <= DENSE_UP_TO:
        return l2_gain_reference(recurrence, length)
    parts = T.split(_LANCZOS_GROUPS)
    return torch.cat([_lanczos(part, tolerance=tolerance, steps=steps) for part in parts])


def l2_gain_reference(recurrence: Recurrence, length: int) -> Float[Tensor, " groups"]:
    """`l2_gain` by decomposing the whole matrix: cubic in length times channels of a group."""
    return torch.linalg.matrix_norm(operator_matrix(recurrence, length), ord=2)


class PooledGains(NamedTuple):
    """Worst cases of the mean of y over time, which is what a mean-pooling classifier sees."""

    linf: Float[Tensor, "groups outputs"]
    """The largest |mean y| of each output for max|u| <= 1."""
    l2: Float[Tensor, "groups outputs"]
    """The largest |mean y| of each output for ||u||_2 <= 1."""
    spectral: Float[Tensor, " groups"]
    """The largest ||mean y||_2 over the outputs together for ||u||_2 <= 1."""
    signs: Float[Tensor, "groups inputs length"]
    """The u of entries -1 and 1 that attains the largest `linf` of the group."""


def pooled_gains(recurrence: Recurrence, length: int) -> PooledGains:
    """Exact gains of the output's mean over time.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    W = pooled_weights(recurrence, length)
    linf = W.abs().sum((-1, -2))
    worst = W[torch.arange(len(W), device=W.device), linf.argmax(-1)]
    return PooledGains(linf, W.flatten(2).norm(dim=-1), spectral_norm(W.flatten(2)), _signs(worst))


def pooled_weights(
    recurrence: Recurrence, length: int
) -> Float[Tensor, "groups outputs inputs length"]:
    """W with mean over t of y[t] = sum over i and s of W[i, s] u[i, s].

    For a causal system W[s] = S[length - 1 - s] / length with the step response S.

    Raises:
        Inapplicable: As `two_sided_response`.
    """
    return window_sums(two_sided_response(recurrence, length).flip(-1)) / length


def spectral_norm(M: Tensor) -> Float[Tensor, "*rows"]:
    """The largest singular value of the matrices in the last two axes."""
    if 1 in M.shape[-2:]:
        return torch.linalg.vector_norm(M, dim=(-2, -1))
    if M.shape[-2] > M.shape[-1]:
        M = M.mH
    return torch.linalg.eigvalsh(M @ M.mH)[..., -1].clamp(min=0).sqrt()


def _signs(values: Tensor) -> Tensor:
    return torch.where(values >= 0, 1.0, -1.0).to(values.dtype)


def _lanczos(T: Tensor, *, tolerance: float, steps: int) -> Float[Tensor, " groups"]:
    """The root of the largest eigenvalue of H^T H, fully reorthogonalised, all groups at once."""
    groups, _, inputs, lags = T.shape
    length = (lags + 1) // 2
    forward, adjoint = circulant_spectrum(T), circulant_spectrum(T.flip(-1).transpose(1, 2))

    def gram(v: Tensor) -> Tensor:
        grouped = v.reshape(1, groups, inputs, length)
        return circulant_product(adjoint, circulant_product(forward, grouped)).reshape(groups, -1)

    start = Noise(0).fork("lanczos").normal(groups, inputs * length, dtype=torch.float64)
    v = F.normalize(start.to(T.device), dim=-1)
    steps = min(steps, inputs * length)
    basis = v.new_zeros(groups, steps, inputs * length)
    projected = v.new_zeros(groups, steps, steps)  # tridiagonal
    previous = torch.zeros_like(v)
    for k in range(steps):
        basis[:, k] = v
        w = gram(v)
        projected[:, k, k] = (w * v).sum(-1)
        w = w - projected[:, k, k, None] * v - previous
        known = basis[:, : k + 1]  # what exact arithmetic would leave orthogonal to them all
        w = w - einsum(known, einsum(known, w, "g k n, g n -> g k"), "g k n, g k -> g n")
        size = w.norm(dim=-1)
        if (k + 1) % _CHECK_EVERY == 0 or k + 1 == steps:
            values, vectors = torch.linalg.eigh(projected[:, : k + 1, : k + 1])
            residual = size * vectors[:, -1, -1].abs()
            if (residual <= tolerance * values[:, -1]).all() or k + 1 == steps:
                return values[:, -1].clamp(min=0).sqrt()
        if k + 1 < steps:
            projected[:, k, k + 1] = projected[:, k + 1, k] = size
            previous = size[:, None] * v
            v = w / size.clamp(min=torch.finfo(w.dtype).tiny)[:, None]
    raise AssertionError("at least one step is taken")
