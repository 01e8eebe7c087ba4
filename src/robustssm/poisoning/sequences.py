"""Training sequences for linear SSMs, and the sets that are made of them (slutzky2024implicit).

Positions count from 1 as in the paper: position p of a sequence of length L meets lag L - p.
"Ordinary" sequences have nothing at late positions; a "special" one has something at position
L - 1, which is all that Theorem 1 needs. Labels are always the teacher's: they are clean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64

from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, check_stable


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequences:
    """Unlabelled training sequences of one length."""

    x: Float64[np.ndarray, "n length"]
    support: Bool[np.ndarray, "n length"]
    """Where a sequence may have something; kept, as entries of `x` may be 0 by chance."""
    is_special: Bool[np.ndarray, " n"]

    def __post_init__(self) -> None:
        if self.x.shape[1] < 3:
            raise ValueError(_too_short(self.x.shape[1]))
        if not np.isfinite(self.x).all():
            row, place = (int(i) for i in np.argwhere(~np.isfinite(self.x))[0])
            raise ValueError(
                violation(
                    "Training sequences",
                    "have finite entries",
                    f"{self.x[row, place]} at position {place + 1} of sequence {row + 1}",
                    "Leave that sequence out, or fill the gap before training.",
                )
            )

    @property
    def length(self) -> int:
        """Number of positions, the kappa of the paper."""
        return self.x.shape[1]

    def __add__(self, other: "Sequences") -> "Sequences":
        if other.length != self.length:
            raise ValueError(_unequal([self.length, other.length]))
        return Sequences(
            x=np.concatenate([self.x, other.x]),
            support=np.concatenate([self.support, other.support]),
            is_special=np.concatenate([self.is_special, other.is_special]),
        )

    def labelled(self, teacher: LinearSSM) -> "TrainingSet":
        """With the teacher's last outputs as labels.

        Raises:
            ValueError: If the teacher is unstable.
        """
        check_stable(teacher.a)
        return TrainingSet(
            x=self.x,
            y=teacher.last_output(self.x),
            is_special=self.is_special,
            support=self.support,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingSet(Sequences):
    """Sequences with labels."""

    y: Float64[np.ndarray, " n"]

    @property
    def excited_lags(self) -> tuple[int, ...]:
        """Lags m >= 0 that some sequence reaches, by the support."""
        reached = np.flatnonzero(np.flip(self.support, axis=1)) % self.length
        return tuple(int(m) for m in np.unique(reached))


def ordinary(n: int, *, length: int, support: Sequence[int], noise: Noise) -> Sequences:
    """Sequences with N(0, 1) entries at the positions `support` and 0 elsewhere.

    Args:
        n: Number of sequences.
        length: Their length, at least 3.
        support: Positions, from 1, without the last two.
        noise: Where the entries come from.

    Raises:
        ValueError: If a position is late, or is none.
    """
    check_positions(length, ordinary=support)
    return at_positions(n, length=length, support=support, noise=noise)


def special(
    n: int, *, length: int, noise: Noise, positions: Sequence[int] | None = None
) -> Sequences:
    """Sequences with N(0, 1) entries at late positions alone; by default at `length` - 1."""
    chosen = (length - 1,) if positions is None else positions
    found = at_positions(n, length=length, support=chosen, noise=noise)
    return Sequences(x=found.x, support=found.support, is_special=np.ones(n, dtype=bool))


def dense(n: int, *, length: int, noise: Noise) -> Sequences:
    """Sequences with N(0, 1) entries everywhere: what natural data are like."""
    return at_positions(n, length=length, support=range(1, length + 1), noise=noise)


def impulse(
    *entries: tuple[int, float], length: int, copies: int = 1, is_special: bool = False
) -> Sequences:
    """Sequences with given values at given positions, as in Theorem 1.

    `impulse((1, 1.0), length=7)` is the ordinary sequence of the theorem, `impulse((6, 1.0),
    length=7, is_special=True)` its special one, and `impulse((1, 1.0), (6, 1e-3), ...)` hides the
    latter inside the former ("stealthy").

    Args:
        *entries: (position from 1, value).
        length: Length of the sequence.
        copies: How many equal sequences.
        is_special: Whether they count as poison.
    """
    check_positions(length, special=[position for position, _ in entries])
    row, mask = np.zeros(length), np.zeros(length, dtype=bool)
    for position, value in entries:
        row[position - 1], mask[position - 1] = value, True
    return Sequences(
        x=np.tile(row, (copies, 1)),
        support=np.tile(mask, (copies, 1)),
        is_special=np.full(copies, is_special),
    )


def at_positions(n: int, *, length: int, support: Sequence[int], noise: Noise) -> Sequences:
    """Sequences with N(0, 1) entries at the positions `support`, wherever these are."""
    check_positions(length, special=support)
    if n < 1:
        raise ValueError(violation("A number of sequences", "be at least 1", n))
    mask = np.zeros((n, length), dtype=bool)
    mask[:, [p - 1 for p in support]] = True
    values = noise.normal(n, length, dtype=torch.float64).numpy()
    return Sequences(x=np.where(mask, values, 0.0), support=mask, is_special=np.zeros(n, bool))


def from_rows(rows: Sequence[Sequence[float]]) -> Sequences:
    """A user's own sequences; the support is where entries differ from 0.

    Args:
        rows: At least two sequences of one length, at least 3, with finite entries.

    Raises:
        ValueError: If they are not that; the first bad sequence is named.
    """
    lengths = [len(row) for row in rows]
    if len(rows) < 2:
        raise ValueError(
            violation(
                "A training set",
                "have at least two sequences, as one cannot be told from the others",
                len(rows),
                "Give one sequence per row.",
            )
        )
    if len(set(lengths)) > 1:
        raise ValueError(_unequal(lengths))
    if lengths[0] < 3:
        raise ValueError(_too_short(lengths[0]))
    x = np.array(rows, dtype=float)
    return Sequences(x=x, support=x != 0, is_special=np.zeros(len(x), bool))


def check_positions(
    length: int,
    *,
    ordinary: Sequence[int] | None = None,
    special: Sequence[int] | None = None,
) -> None:
    """Refuses supports that no sequence of that length can have.

    Args:
        length: Of the sequences.
        ordinary: Positions of ordinary ones, which end in two zeros.
        special: Positions of special ones.

    Raises:
        ValueError: If a position lies outside, or an ordinary one is late.
    """
    if length < 3:
        raise ValueError(_too_short(length))
    for support in (ordinary, special):
        wrong = [p for p in support or () if not 1 <= p <= length]
        if support is not None and (wrong or not len(support)):
            must = f"be some of 1, ..., {length}"
            raise ValueError(violation("Positions of a sequence", must, wrong or "none at all"))
    late = [p for p in ordinary or () if p > length - 2]
    if late:
        raise ValueError(
            violation(
                f"The support of ordinary sequences of length {length}",
                f"name positions from 1 to {length - 2}, as they end in zeros",
                late,
                "Special sequences are those with late entries.",
            )
        )


def _unequal(lengths: Sequence[int]) -> str:
    other = next(i for i, length in enumerate(lengths) if length != lengths[0])
    return violation(
        "Training sequences",
        "all have one length",
        f"{lengths[0]} for the first and {lengths[other]} for number {other + 1}",
        "Cut them to one length, or pad with zeros at the beginning: zeros at the end move every "
        "entry to a longer lag.",
    )


def _too_short(length: int) -> str:
    return violation(
        "The length of training sequences (kappa)",
        "be at least 3: one entry for a long lag, one for lag 1 and one for lag 0",
        length,
        "Use longer sequences; the published settings have 6 to 10.",
    )
