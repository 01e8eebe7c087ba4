"""How well scores tell poison from the rest."""

import numpy as np
from jaxtyping import Bool, Float64

from robustssm.core.errors import violation

GRID = np.linspace(0, 1, 41)
"""False positive rates at which curves are kept."""


def auroc(scores: Float64[np.ndarray, " n"], poison: Bool[np.ndarray, " n"]) -> float:
    """Probability that poison scores higher than a clean one, ties counting half.

    Raises:
        ValueError: If one of the two kinds is missing, or a score is NaN.

    Source: fawcett2006introduction. Oracle: scikit-learn (tests/poisoning/test_scoring.py).
    """
    found, clean = _split(scores, poison)
    above = (found[:, None] > clean).sum() + 0.5 * (found[:, None] == clean).sum()
    return float(above / (len(found) * len(clean)))


def false_positives_at(
    scores: Float64[np.ndarray, " n"], poison: Bool[np.ndarray, " n"], *, recall: float = 0.95
) -> float:
    """The smallest share of clean ones flagged by a threshold that flags `recall` of the poison."""
    found, clean = _split(scores, poison)
    needed = int(np.ceil(recall * len(found) - 1e-9))
    threshold = np.sort(found)[len(found) - needed]
    return float((clean >= threshold).mean())


def roc(
    scores: Float64[np.ndarray, " n"], poison: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, " grid"]:
    """True positive rates at the false positive rates of `GRID`, on lines between thresholds."""
    found, clean = _split(scores, poison)
    thresholds = np.unique(scores)[::-1]
    true = np.array([0.0, *[(found >= t).mean() for t in thresholds]])
    false = np.array([0.0, *[(clean >= t).mean() for t in thresholds]])
    # Where the curve rises straight up, the interpolation must see its top.
    top = np.array([true[false == f].max() for f in np.unique(false)])
    return np.interp(GRID, np.unique(false), top)


def _split(
    scores: Float64[np.ndarray, " n"], poison: Bool[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    if poison.all() or not poison.any() or np.isnan(scores).any():
        raise ValueError(
            violation(
                "Scores to be rated",
                "be of clean and of poisoned sequences, without NaN",
                f"{int(poison.sum())} poisoned of {len(poison)}, {int(np.isnan(scores).sum())} NaN",
            )
        )
    return scores[poison], scores[~poison]
