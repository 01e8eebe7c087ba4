"""The linear SSM of the poisoning theory: diagonal, one input, one output, float64.

s_k = diag(a) s_{k-1} + b x_k,  y_k = c^T s_k,  s_0 = 0;  only the last output is looked at
(slutzky2024implicit). Its impulse response at lag m is h_m = sum_j c_j b_j a_j^m, and the last
output of a sequence of length L is phi(x) = sum_m h_m x_{L-m}.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from robustssm.core.errors import violation


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearSSM:
    """Diagonal linear SSMs, one or a whole array of them.

    Source: slutzky2024implicit, section 2.
    """

    a: Float64[np.ndarray, "*runs d_state"]
    """Diagonal of the state matrix."""
    b: Float64[np.ndarray, "*runs d_state"]
    """Input weights."""
    c: Float64[np.ndarray, "*runs d_state"]
    """Output weights."""

    def __post_init__(self) -> None:
        if not self.a.shape == self.b.shape == self.c.shape or self.a.shape[-1] < 1:
            raise ValueError(
                violation(
                    "`LinearSSM(a, b, c)`",
                    "be given arrays of one shape, with at least one state",
                    f"{self.a.shape}, {self.b.shape} and {self.c.shape}",
                    "Give b and c one entry for each entry of the diagonal a.",
                )
            )

    @property
    def d_state(self) -> int:
        """Number of states."""
        return self.a.shape[-1]

    @property
    def gains(self) -> Float64[np.ndarray, "*runs d_state"]:
        """What each state adds to the impulse response at lag 0: c_j b_j."""
        return self.b * self.c

    def impulse_response(self, lags: int) -> Float64[np.ndarray, "*runs lags"]:
        """h_0, ..., h_{lags-1}."""
        response = powers(self.a, lags) @ self.gains[..., None]
        return response[..., 0]

    def last_output(self, x: Float64[np.ndarray, "... n length"]) -> Float64[np.ndarray, "... n"]:
        """phi(x), the output at the last step of every sequence.

        Args:
            x: Sequences, (n, length), for every SSM the same, or (*runs, n, length).

        Returns:
            (*runs, n).
        """
        response = self.impulse_response(x.shape[-1])
        return (by_lag(x) @ response[..., None])[..., 0]


def powers(
    a: Float64[np.ndarray, "*runs d_state"], lags: int
) -> Float64[np.ndarray, "*runs lags d_state"]:
    """a_j^m at [..., m, j], m = 0, ..., lags - 1; 0^0 = 1."""
    table = np.broadcast_to(a[..., None, :], (*a.shape[:-1], lags, a.shape[-1])).copy()
    table[..., :1, :] = 1
    return np.cumprod(table, axis=-2)


def by_lag(
    x: Float64[np.ndarray, "*runs n length"],
) -> Float64[np.ndarray, "*runs n length"]:
    """x_{length-m} at [..., m]: the input that lag m of the impulse response multiplies."""
    return x[..., ::-1]


def theorem_teacher(d_student: int) -> LinearSSM:
    """The teacher of Theorem 1: diag(1, 0) behind (1, sqrt(d - 1)), for a student of d states.

    A student with b = c = 1 agrees with it at lag 0, where both respond d; at every later lag the
    teacher responds 1.

    Raises:
        ValueError: If the student has no more states than the teacher.
    """
    if d_student <= 2:
        raise ValueError(
            violation(
                "The student of Theorem 1",
                "have more states than its teacher, which has 2",
                d_student,
                "Try d_state=10.",
            )
        )
    weights = np.array([1.0, np.sqrt(d_student - 1)])
    return LinearSSM(a=np.array([1.0, 0.0]), b=weights, c=weights)


def diagonal_teacher(*diagonal: float) -> LinearSSM:
    """The teacher with this diagonal and b = c = 1; `diagonal_teacher(1)` responds 1 at all lags.

    Raises:
        ValueError: If it is unstable: an entry larger than 1 in magnitude, or not a number.
    """
    a = np.array(diagonal, dtype=float)
    check_stable(a)
    return LinearSSM(a=a, b=np.ones_like(a), c=np.ones_like(a))


def check_stable(a: Float64[np.ndarray, "*runs d_state"]) -> None:
    """Refuses the diagonal of a teacher whose responses grow.

    Raises:
        ValueError: If an entry is larger than 1 in magnitude or no number, or there is none.
    """
    if a.size == 0 or not np.all(np.abs(a) <= 1):
        raise ValueError(
            violation(
                "The diagonal of a teacher",
                "have entries in [-1, 1], as its responses grow without end otherwise",
                a.tolist(),
                "Scale the entries down; 1 itself is allowed, and remembers for ever.",
            )
        )
