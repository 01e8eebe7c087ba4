"""Detectors: one score per training sequence, higher where it looks more like poison.

Some look at the sequences alone, some at a student that was trained on them, and the alarms at the
student alone. None is calibrated: `robust_z` compares scores with each other, and
`poisoning.scoring` measures what each is worth against attackers that know it.
"""

import numpy as np
from jaxtyping import Float64, Int, Num

from robustssm.core.errors import violation
from robustssm.models.linear_ssm import LinearSSM, by_lag, powers
from robustssm.poisoning.excitation import amplitudes
from robustssm.poisoning.metrics import contribution_rank
from robustssm.poisoning.training import Students

NORMAL_MAD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


def robust_z(scores: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """(score - median) / (1.4826 MAD): the modified z-score.

    Where more than half of all scores are equal, they have z = 0 and any other one is infinite.

    Source: ours; the median and the MAD break down where half of the scores are poison.
    """
    centred = scores - np.median(scores)
    spread = NORMAL_MAD * np.median(np.abs(centred))
    if spread > 0:
        return centred / spread
    return np.where(centred == 0, 0.0, np.copysign(np.inf, centred))


def tail_energy(
    x: Num[np.ndarray, "n length *channels"], *, window: int = 2
) -> Float64[np.ndarray, " n"]:
    """Share of a sequence's energy in its last `window` positions; 0 for a sequence of zeros.

    It does not see a late entry that hides in an ordinary sequence: its share may be 1e-6.

    Source: slutzky2024implicit ("last elements relatively large"); the filter is ours.
    """
    size = amplitudes(x)
    if not 1 <= window < size.shape[1]:
        raise ValueError(
            violation("`tail_energy(window=...)`", f"be 1 to {size.shape[1] - 1}", window)
        )
    largest = size.max(axis=1, keepdims=True)
    energy = (size / np.where(largest > 0, largest, 1.0)) ** 2
    total = energy.sum(axis=1)
    return energy[:, -window:].sum(axis=1) / np.where(total > 0, total, 1.0)


def gamma_influence(
    x: Float64[np.ndarray, "n length"], y: Float64[np.ndarray, " n"], path: Students
) -> Float64[np.ndarray, " n"]:
    """The share of gamma_0 that each sequence makes, averaged over the states of a path.

    With a path of one state, the initial one, it needs no training.

    Args:
        x: Training sequences.
        y: Their labels.
        path: Students over training, arrays (states, d_state); or a single one.

    Source: slutzky2024implicit, Proposition 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        z = path.ssm.last_output(x)
        slope = path.slope(z)
        push = np.abs((y - slope * z) * slope * by_lag(x)[:, 1])
    return _mean_share(push)


def gradient_influence(
    x: Float64[np.ndarray, "n length"], y: Float64[np.ndarray, " n"], path: Students
) -> Float64[np.ndarray, " n"]:
    """The share of each sequence in the summed norms of the gradients on the diagonal of A.

    Args:
        x: Training sequences.
        y: Their labels.
        path: Students over training, arrays (states, d_state); or a single one.

    Source: ours. Oracle: autograd (tests/poisoning/test_detectors.py).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        z = path.ssm.last_output(x)
        slope = path.slope(z)
        lags = np.arange(1.0, x.shape[1])
        reach = powers(path.ssm.a, x.shape[1] - 1) * lags[:, None] * path.ssm.gains[..., None, :]
        by_state = by_lag(x)[:, 1:] @ reach
        push = np.abs((y - slope * z) * slope) * np.linalg.norm(by_state, axis=-1)
    return _mean_share(push)


def _mean_share(push: Float64[np.ndarray, "*states n"]) -> Float64[np.ndarray, " n"]:
    """Shares within each state, averaged over the states that push at all."""
    rows = push.reshape(-1, push.shape[-1])
    total = rows.sum(axis=1, keepdims=True)
    sound = np.isfinite(total[:, 0]) & (total[:, 0] > 0)
    if not sound.any():
        return np.zeros(push.shape[-1])
    return (rows[sound] / total[sound]).mean(axis=0)


def final_states(
    student: LinearSSM, x: Float64[np.ndarray, "n length"]
) -> Float64[np.ndarray, "n d_state"]:
    """The state of a student after each sequence: the features of the next three detectors."""
    return by_lag(x) @ powers(student.a, x.shape[1]) * student.b


def leverage(features: Float64[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
    """Diagonal of F F^+: how much of a direction of its own a row has; between 0 and 1.

    On sequences it is the leverage of the lag matrix.

    Source: hoaglin1978hat.
    """
    left, values, _ = np.linalg.svd(_unit(features), full_matrices=False)
    kept = values > max(features.shape) * np.finfo(float).eps * values.max(initial=0.0)
    return (left[:, kept] ** 2).sum(axis=1)


def spectral_signature(features: Float64[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
    """Squared projection of the centred features on their first principal direction.

    For classes, call it on each class alone, as published.

    Source: tran2018spectral, algorithm 1.
    """
    centred = _unit(features - features.mean(axis=0))
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[0]) ** 2


def activation_clustering(
    features: Float64[np.ndarray, "n features"], *, rounds: int = 50
) -> Float64[np.ndarray, " n"]:
    """How much nearer a row is to the centre of the smaller of two clusters; in [-1, 1].

    Two-means from a split at the mean along the first principal direction, so that it depends on
    no random start and on no order; features are not reduced first. For classes, call it on each.

    Source: chen2018detecting, section 4, by cluster size.
    """
    centred = _unit(features - features.mean(axis=0))
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    second = centred @ directions[0] > 0
    distances = np.zeros((len(centred), 2))
    for _ in range(rounds):
        if second.all() or not second.any():
            return np.zeros(len(centred))
        centres = (centred[~second].mean(axis=0), centred[second].mean(axis=0))
        distances = np.stack([np.linalg.norm(centred - c, axis=1) for c in centres], axis=1)
        moved = distances[:, 1] < distances[:, 0]
        if (moved == second).all():
            break
        second = moved
    smaller = int(second.sum() * 2 <= len(second))
    total = distances.sum(axis=1)
    return (distances[:, 1 - smaller] - distances[:, smaller]) / np.where(total > 0, total, 1.0)


def deep_knn(
    features: Float64[np.ndarray, "n features"],
    labels: Float64[np.ndarray, " n"] | Int[np.ndarray, " n"],
    *,
    neighbours: int = 3,
) -> Float64[np.ndarray, " n"]:
    """How far the label of a row is from those of its nearest neighbours.

    For integer labels the share of neighbours with another one, as published; for real labels the
    distance from their mean.

    Source: peri2020deep, section 3; the form for real labels is ours.
    """
    n = len(features)
    if not 1 <= neighbours < n:
        raise ValueError(violation("`deep_knn(neighbours=...)`", f"be 1 to {n - 1}", neighbours))
    scaled = _unit(features)
    square = (scaled**2).sum(axis=1)
    distance = square[:, None] + square - 2 * scaled @ scaled.T
    np.fill_diagonal(distance, np.inf)
    near = labels[np.argsort(distance, axis=1, kind="stable")[:, :neighbours]]
    if np.issubdtype(labels.dtype, np.integer):
        return (near != labels[:, None]).mean(axis=1)
    return np.abs(labels - near.mean(axis=1))


def _unit(features: Float64[np.ndarray, "n features"]) -> Float64[np.ndarray, "n features"]:
    """Divided by the largest entry, so that squares neither overflow nor vanish."""
    largest = np.abs(features).max(initial=0.0)
    return features / largest if largest > 0 else features


def rank_alarm(path: LinearSSM, *, length: int) -> Float64[np.ndarray, "*states"]:
    """Effective rank of the states' contributions over training: high where many fit together.

    Source: slutzky2024implicit (effective rank); the weights by contribution are ours.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return contribution_rank(path, lags=length)


def stability_alarm(
    path: LinearSSM, *, length: int, times: int = 4
) -> Float64[np.ndarray, "*states"]:
    """How much larger the response is beyond the training length, up to `times` it, than within.

    1 where it does not grow; a student with max |a| = 1.085 has 4.3 for length 6 and 4 times.

    Args:
        path: Students over training, arrays (states, d_state); or a single one.
        length: Training length.
        times: How far to look, in training lengths.

    Source: ours.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        response = np.abs(path.impulse_response(times * length))
        inside = response[..., 1:length].max(axis=-1)
        beyond = response[..., length:].max(axis=-1)
        growth = beyond / np.where(inside > 0, inside, 1.0)
    return np.asarray(np.maximum(np.where(np.isnan(growth), np.inf, growth), 1.0))
