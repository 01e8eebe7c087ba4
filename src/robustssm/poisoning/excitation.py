"""How training sequences excite each lag of a response, before any training."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Num

from robustssm.core.errors import violation

RARE = 0.1
"""A lag is suspicious if its energy comes from fewer sequences than this share of the usual."""


def amplitudes(x: Num[np.ndarray, "n length *channels"]) -> Float64[np.ndarray, "n length"]:
    """|x| at every position; over channels, if there are any, the l2 norm."""
    if x.ndim not in (2, 3):
        raise ValueError(violation("Sequences", "be (n, length) or (n, length, channels)", x.shape))
    values = np.abs(x.astype(np.float64, copy=False))
    if x.ndim == 2:
        return values
    largest = values.max(axis=2, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)
    return largest * np.sqrt(((values / unit[..., None]) ** 2).sum(axis=2))


@dataclass(frozen=True, eq=False, kw_only=True)
class LagAudit:
    """How the sequences of a set excite each lag; arrays go from lag 0 on."""

    energy: Float64[np.ndarray, " lags"]
    """E_m: the mean square of what meets lag m."""
    carried: Float64[np.ndarray, " lags"]
    """How many sequences carry that energy: (sum x^2)^2 / sum x^4, 0 where there is none."""
    flagged: Bool[np.ndarray, " lags"]
    """Lags that few sequences excite, beside others that many do."""
    greedy: bool
    """Whether lag 1 is not excited at all: states are then learned one after the other."""


def lag_excitation(x: Num[np.ndarray, "n length *channels"]) -> LagAudit:
    """What a training set tells a student about each lag, before any training.

    Source: slutzky2024implicit, Proposition 1: gamma_l is fed by lag l + 1 alone.
    """
    size = np.flip(amplitudes(x), axis=1)
    largest = size.max(axis=0)
    square = (size / np.where(largest > 0, largest, 1.0)) ** 2
    return lag_verdict(
        n=len(x),
        energy=square.mean(axis=0) * largest**2,
        carried=participation(square.sum(axis=0), (square**2).sum(axis=0)),
    )


def lag_verdict(
    *, n: int, energy: Float64[np.ndarray, " lags"], carried: Float64[np.ndarray, " lags"]
) -> LagAudit:
    """Flags lags by how many of the `n` sequences carry their energy."""
    excited = carried > 0
    usual = float(np.median(carried[excited])) if excited.any() else float(n)
    return LagAudit(
        energy=energy,
        carried=carried,
        flagged=excited & (carried < RARE * usual),
        greedy=not bool(excited[1]),
    )


def participation(
    squares: Float64[np.ndarray, " lags"], fourths: Float64[np.ndarray, " lags"]
) -> Float64[np.ndarray, " lags"]:
    """(sum x^2)^2 / sum x^4: n for n equal sequences, 1 for a single one, 0 for none."""
    return squares**2 / np.where(fourths > 0, fourths, 1.0)


def excitation_share(
    x: Num[np.ndarray, "n length *channels"], *, lags: int = 1
) -> Float64[np.ndarray, " n"]:
    """The largest share that a sequence has of a set's energy at one of the lags 1, ..., `lags`.

    Unlike `tail_energy` it does not compare an entry with the rest of its own sequence, so that a
    small one counts in full where nothing else excites its lag.

    Source: slutzky2024implicit, Proposition 1; the score is ours.
    """
    size = np.flip(amplitudes(x), axis=1)[:, 1 : lags + 1]
    largest = size.max(axis=0)
    square = (size / np.where(largest > 0, largest, 1.0)) ** 2
    total = square.sum(axis=0)
    return (square / np.where(total > 0, total, 1.0)).max(axis=1)
