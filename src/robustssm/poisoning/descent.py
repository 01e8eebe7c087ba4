"""Gradient descent with the published adaptive step, for many linear students at once.

With G_t the sum of the Frobenius norms of the gradients of A (the full matrix), b and c:

    m_t = 0.8 m_{t-1} + 0.2 G_t,   step_t = base / (sqrt(m_t / (1 - 0.8^{t+1})) + 1e-6)

Gradients are closed forms: with r_m = d loss / d h_m and V_pj = a_j^p, the gradient of the full
state matrix at a diagonal one is (V c)^T H (V b) with the Hankel matrix H_pq = r_{p+q+1}.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from robustssm.models.linear_ssm import LinearSSM
from robustssm.poisoning.dynamics import compressed
from robustssm.poisoning.sequences import TrainingSet
from robustssm.poisoning.training import Learner

MEMORY = 0.8
SOFT = 1e-6


def stack(systems: Sequence[LinearSSM]) -> LinearSSM:
    """One array of SSMs from several single ones of the same size."""
    return LinearSSM(
        a=np.stack([s.a for s in systems]),
        b=np.stack([s.b for s in systems]),
        c=np.stack([s.c for s in systems]),
    )


class AdaptiveDescent(Learner):
    """Students that learn A, b and c by full-batch descent on the mean squared error.

    Source: slutzky2024implicit, the published code.
    """

    def __init__(
        self,
        start: LinearSSM,
        data: Sequence[TrainingSet],
        *,
        base_step: Float64[np.ndarray, " runs"],
        fixed_weights: bool = False,
        norm: Literal["matrix", "diagonal"] = "matrix",
    ):
        """Prepares the runs.

        Args:
            start: Where they start, arrays (runs, d_state).
            data: One training set per run, of one length.
            base_step: Base of the step, per run.
            fixed_weights: Whether b and c return to 1 after every step. As published: the first
                gradient still sees those drawn, and the step size always counts theirs.
            norm: "matrix" takes the gradient of A with its entries off the diagonal into the
                step size, as published; "diagonal" leaves them out.
        """
        self.a, self.b, self.c = start.a.copy(), start.b.copy(), start.c.copy()
        parts = [compressed(each) for each in data]
        self._factor = np.stack([factor for factor, _, _ in parts])
        self._target = np.stack([target for _, target, _ in parts])
        self._rest = np.array([rest for _, _, rest in parts])
        self._base, self._fixed, self._norm = base_step, fixed_weights, norm
        self._memory = np.zeros(len(parts))
        self._steps = 0
        lags = self._factor.shape[-1]
        self._lags = np.arange(1.0, lags)
        order = np.add.outer(np.arange(lags - 1), np.arange(lags - 1))
        self._hankel = np.minimum(order + 1, lags)  # index `lags` points at the zero put behind r
        self._table = np.ones((len(parts), lags, self.a.shape[-1]))

    def losses(self) -> Float64[np.ndarray, " runs"]:
        """Training loss of every run."""
        table = self._table
        for lag in range(1, table.shape[1]):
            np.multiply(table[:, lag - 1], self.a, out=table[:, lag])
        response = table @ (self.b * self.c)[:, :, None]
        self._residual = (self._factor @ response)[:, :, 0] - self._target
        return (self._residual * self._residual).sum(axis=1) + self._rest

    def gradient(
        self,
    ) -> tuple[
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, " runs"],
    ]:
        """Of a, b and c at the last `losses`, and the norm of the gradient of A."""
        table = self._table
        r = 2 * (self._residual[:, None, :] @ self._factor)
        reach = (r @ table)[:, 0]
        da = self.b * self.c * ((r[:, :, 1:] * self._lags) @ table[:, :-1])[:, 0]
        if self._norm == "diagonal":
            return da, self.c * reach, self.b * reach, np.sqrt((da * da).sum(axis=1))
        padded = np.concatenate([r[:, 0], np.zeros((len(r), 1))], axis=1)
        hankel = padded[:, self._hankel]
        entering, leaving = table[:, :-1] * self.b[:, None], table[:, :-1] * self.c[:, None]
        inner = hankel @ (entering @ entering.swapaxes(1, 2)) @ hankel
        squared = (inner * (leaving @ leaving.swapaxes(1, 2))).sum(axis=(1, 2))
        return da, self.c * reach, self.b * reach, np.sqrt(np.maximum(squared, 0))

    def update(self) -> None:
        """One step."""
        da, db, dc, norm = self.gradient()
        total = norm + np.sqrt((db * db).sum(axis=1)) + np.sqrt((dc * dc).sum(axis=1))
        self._steps += 1
        self._memory = MEMORY * self._memory + (1 - MEMORY) * total
        scale = np.sqrt(self._memory / (1 - MEMORY**self._steps)) + SOFT
        step = (self._base / scale)[:, None]
        self.a -= step * da
        if self._fixed:
            self.b[:], self.c[:] = 1, 1
        else:
            self.b -= step * db
            self.c -= step * dc

    def states(self) -> Float64[np.ndarray, "runs packed"]:
        """a, b and c side by side."""
        return np.concatenate([self.a, self.b, self.c], axis=1)

    def keep(self, rows: Bool[np.ndarray, " runs"]) -> None:
        """Leaves only these runs in the batch."""
        self.a, self.b, self.c = self.a[rows], self.b[rows], self.c[rows]
        self._factor, self._target = self._factor[rows], self._target[rows]
        self._rest, self._base = self._rest[rows], self._base[rows]
        self._memory, self._table = self._memory[rows], self._table[rows]
        self._residual = self._residual[rows]
