"""A linear SSM in front of a ReLU network without biases, trained by Adam, many runs at once.

Such a network is positively homogeneous, g(z) = |z| g(sign z), so two forward passes, of 1 and -1,
serve every training sequence exactly, however many there are.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from robustssm.models.linear_ssm import LinearSSM, by_lag
from robustssm.poisoning.initialisation import Head
from robustssm.poisoning.sequences import TrainingSet
from robustssm.poisoning.training import Learner, Students

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7
"""Adam as published: Keras' defaults. The time spent on a plateau depends on epsilon."""

_SIGNS = np.array([1.0, -1.0])[:, None]


def slopes(head: Head) -> Float64[np.ndarray, "*runs 2"]:
    """g(1) and g(-1)."""
    first = np.maximum(_SIGNS * head.inward[..., None, :], 0)
    second = np.maximum(first @ head.hidden, 0)
    return (second @ head.outward[..., None])[..., 0]


def with_head(ssm: LinearSSM, head: Head) -> Students:
    """The SSM and the network as one predictor."""
    return Students(ssm=ssm, slopes=slopes(head))


class AdamNetwork(Learner):
    """Students y = g(phi(x)) that learn everything by full-batch Adam on the mean squared error.

    Source: slutzky2024implicit, the published code; kingma2015adam in the form of Keras, which
    scales epsilon with the bias correction.
    """

    def __init__(
        self,
        start: LinearSSM,
        head: Head,
        data: Sequence[TrainingSet],
        *,
        rate: Float64[np.ndarray, " runs"],
    ):
        """Prepares the runs.

        Args:
            start: SSMs, arrays (runs, d_state).
            head: Networks, arrays (runs, width) and (runs, width, width).
            data: One training set per run, of one length; they may differ in size.
            rate: Learning rate per run.
        """
        runs, d_state = start.a.shape
        self._sizes = (d_state, head.inward.shape[-1])
        flat = (start.a, start.b, start.c, head.inward, head.outward, head.hidden)
        self._theta = np.concatenate([part.reshape(runs, -1) for part in flat], axis=1)
        self._first, self._second = np.zeros_like(self._theta), np.zeros_like(self._theta)
        self._gradient = np.zeros_like(self._theta)
        self._rate, self._steps = rate[:, None], 0
        # Sequences of zeros fill up the smaller sets: they have z = y = 0 and so add nothing.
        largest, length = max(len(each.x) for each in data), data[0].length
        self._x, self._y = np.zeros((runs, largest, length)), np.zeros((runs, largest))
        for run, each in enumerate(data):
            self._x[run, : len(each.x)] = by_lag(each.x)
            self._y[run, : len(each.y)] = each.y
        self._share = 1 / np.array([float(len(each.x)) for each in data])[:, None]
        self._views()

    def losses(self) -> Float64[np.ndarray, " runs"]:
        """Training loss of every run."""
        table = self._table
        for lag in range(1, table.shape[1]):
            np.multiply(table[:, lag - 1], self.a, out=table[:, lag])
        response = table @ (self.b * self.c)[:, :, None]
        self._z = (self._x @ response)[:, :, 0]
        self._hidden1 = np.maximum(_SIGNS * self.inward[:, None], 0)
        self._hidden2 = np.maximum(self._hidden1 @ self.hidden, 0)
        up, down = np.split((self._hidden2 @ self.outward[:, :, None])[:, :, 0], 2, axis=1)
        self._slope = np.where(self._z > 0, up, -down)
        self._residual = self._slope * self._z - self._y
        return (self._residual * self._residual * self._share).sum(axis=1)

    def gradient(self) -> Float64[np.ndarray, "runs packed"]:
        """Of all parameters at the last `losses`, in the order a, b, c, in, out, hidden."""
        error = 2 * self._share * self._residual
        # Sequences with z = 0 pass nothing back, as ReLU's derivative at 0 is taken as 0.
        to_ssm = np.where(self._z == 0, 0.0, error * self._slope)
        r = to_ssm[:, None] @ self._x
        reach = (r @ self._table)[:, 0]
        _, width = self._sizes
        parts, gains = self._parts, self.b * self.c
        parts[0][:] = gains * ((r[:, :, 1:] * self._lags) @ self._table[:, :-1])[:, 0]
        parts[1][:] = self.c * reach
        parts[2][:] = self.b * reach
        to_slopes = np.stack(
            [(error * np.maximum(s * self._z, 0)).sum(axis=1) for s in (1, -1)], axis=1
        )
        parts[4][:] = (to_slopes[:, None] @ self._hidden2)[:, 0]
        back2 = to_slopes[:, :, None] * self.outward[:, None] * (self._hidden2 > 0)
        parts[5][:] = (self._hidden1.swapaxes(1, 2) @ back2).reshape(len(r), width * width)
        back1 = (back2 @ self.hidden.swapaxes(1, 2)) * (self._hidden1 > 0)
        parts[3][:] = back1[:, 0] - back1[:, 1]
        return self._gradient

    def update(self) -> None:
        """One step of Adam."""
        gradient = self.gradient()
        self._steps += 1
        t = self._steps
        self._first += (1 - BETA1) * (gradient - self._first)
        self._second += (1 - BETA2) * (gradient * gradient - self._second)
        rate = self._rate * (np.sqrt(1 - BETA2**t) / (1 - BETA1**t))
        self._theta -= rate * self._first / (np.sqrt(self._second) + EPSILON)

    def states(self) -> Float64[np.ndarray, "runs packed"]:
        """a, b, c and the two slopes of the network side by side."""
        head = Head(inward=self.inward, hidden=self.hidden, outward=self.outward)
        return np.concatenate([self._theta[:, : 3 * self._sizes[0]], slopes(head)], axis=1)

    def keep(self, rows: Bool[np.ndarray, " runs"]) -> None:
        """Leaves only these runs in the batch."""
        self._theta, self._first = self._theta[rows], self._first[rows]
        self._second, self._gradient = self._second[rows], self._gradient[rows]
        self._rate, self._share = self._rate[rows], self._share[rows]
        self._x, self._y = self._x[rows], self._y[rows]
        self._z, self._slope = self._z[rows], self._slope[rows]
        self._residual = self._residual[rows]
        self._hidden1, self._hidden2 = self._hidden1[rows], self._hidden2[rows]
        table = self._table[rows]
        self._views()
        self._table[:] = table

    def _views(self) -> None:
        """Names for the parts of the flat arrays, and room for the powers of a."""
        d_state, width = self._sizes
        ends = np.cumsum([d_state, d_state, d_state, width, width])
        self.a, self.b, self.c, self.inward, self.outward, hidden = np.split(
            self._theta, ends, axis=1
        )
        self.hidden = hidden.reshape(-1, width, width)
        self._parts = np.split(self._gradient, ends, axis=1)
        self._table = np.ones((len(self._theta), self._x.shape[-1], d_state))
        self._lags = np.arange(1.0, self._x.shape[-1])
