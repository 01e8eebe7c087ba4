"""What is read off a trained linear SSM: errors beyond the training length, ranks, intervals."""

import numpy as np
from jaxtyping import Float64

from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, powers


def generalisation_error(
    student: LinearSSM, teacher: LinearSSM, *, horizon: int, first: int = 0
) -> Float64[np.ndarray, "*runs"]:
    """max_m |h_m - h*_m| / max_m |h*_m| over the lags `first`, ..., horizon - 1.

    The zero predictor scores 1; a student that explodes has `inf`. Source: slutzky2024implicit,
    with first=0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        response = student.impulse_response(horizon)[..., first:]
        wanted = teacher.impulse_response(horizon)[..., first:]
        error = np.abs(response - wanted).max(axis=-1) / np.abs(wanted).max(axis=-1)
    return np.where(np.isnan(error), np.inf, error)


def effective_rank(
    weights: Float64[np.ndarray, "*runs d_state"],
) -> Float64[np.ndarray, "*runs"]:
    """Exponential of the entropy of |w| / sum |w|: from 1 to the number of entries.

    For the diagonal of A this is the published measure. Entries that contribute nothing to the
    output count as much as others there; see `contribution_rank`.

    Source: roy2007effective.
    """
    size = np.abs(weights)
    total = size.sum(axis=-1, keepdims=True)
    share = size / np.where(total > 0, total, 1)
    logarithm = np.log(np.where(share > 0, share, 1))
    return np.asarray(np.exp(-(share * logarithm).sum(axis=-1)))


def contribution_rank(student: LinearSSM, *, lags: int) -> Float64[np.ndarray, "*runs"]:
    """The effective rank of how much each state adds to the lags 1, ..., `lags` - 1.

    w_j = |c_j b_j| max_m |a_j|^m over these lags, so that a state with a large a_j that hardly
    reaches the output counts little, and lag 0, which says nothing about A, not at all.
    """
    reach = np.maximum(np.abs(student.a), np.abs(student.a) ** max(lags - 1, 1))
    return effective_rank(np.abs(student.gains) * reach)


def hankel_singular_values(student: LinearSSM, *, lags: int) -> Float64[np.ndarray, "*runs rows"]:
    """Singular values, largest first, of the Hankel matrix h_{p+q+1}, p + q + 1 < `lags`.

    The finite form, as the infinite Gramians do not exist for |a| >= 1; a teacher of r states
    gives r of them that are not 0.
    """
    rows = lags // 2
    forward = powers(student.a, rows)
    weighted = forward * (student.gains * student.a)[..., None, :]
    return np.linalg.svd(weighted @ np.swapaxes(forward, -1, -2), compute_uv=False)


def bootstrap(
    values: Float64[np.ndarray, " seeds"], *, noise: Noise, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median over seeds.

    With few seeds it is coarse: its ends are order statistics, or midpoints of two.

    Args:
        values: One number per seed; infinite ones are allowed.
        noise: Chooses the resamples.
        level: Confidence, in (0, 1).
        draws: Number of resamples.
    """
    _check(values)
    return _percentiles(np.median(_resampled(values, noise, draws), axis=1), level)


def bootstrap_ratio(
    above: Float64[np.ndarray, " seeds"],
    below: Float64[np.ndarray, " others"],
    *,
    noise: Noise,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of median(above) / median(below), resampled independently."""
    _check(above)
    _check(below)
    upper = np.median(_resampled(above, noise.fork("above"), draws), axis=1)
    lower = np.median(_resampled(below, noise.fork("below"), draws), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = upper / lower
    return _percentiles(np.where(np.isnan(ratio), np.inf, ratio), level)


def _check(values: Float64[np.ndarray, " seeds"]) -> None:
    if len(values) == 0:
        raise ValueError(violation("An interval over seeds", "be given at least one seed", "none"))


def _resampled(
    values: Float64[np.ndarray, " seeds"], noise: Noise, draws: int
) -> Float64[np.ndarray, "draws seeds"]:
    return values[noise.integers(draws, len(values), high=len(values)).numpy()]


def _percentiles(values: Float64[np.ndarray, " draws"], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    # Order statistics, not interpolation: infinite values must not turn into NaN.
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")
    return float(low), float(high)
