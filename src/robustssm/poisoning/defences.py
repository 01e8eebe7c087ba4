"""Defences: safer ways of training the linear student, each a variant of plain training.

With every strength at 0 a defence is plain training, bit for bit. Some change what the student
learns from (filtering, truncated and concatenated sequences), some how it learns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher
from robustssm.poisoning.descent import AdaptiveDescent, stack
from robustssm.poisoning.initialisation import student
from robustssm.poisoning.linear_study import Beyond
from robustssm.poisoning.sequences import TrainingSet
from robustssm.poisoning.study import Case
from robustssm.poisoning.training import Trace, train


@settings
class Defence:
    """How the student is protected; the defaults are plain training.

    Source: one for each field; slutzky2024implicit proposes none.
    """

    name: str = "none"
    parametrisation: Literal["free", "exponential", "clamped"] = "free"
    """"exponential" trains nu of a = exp(-exp(nu)), which is in (0, 1) (orvieto2023resurrecting);
    "clamped" puts a back into [-1, 1] after each step."""
    clip: Annotated[float | None, Field(gt=0)] = None
    """Largest norm of the gradient of the diagonal of A (pascanu2013difficulty)."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of sum |a_j|."""
    hankel: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the nuclear norm of the Hankel matrix h_{p+q+1}, p, q < length."""
    forget: Annotated[float, Field(ge=0)] = 0.0
    """Variance of a normal initial state under unchanged labels; its expected loss, exactly."""
    truncations: Annotated[int, Field(ge=0)] = 0
    """Randomly truncated copies of each sequence, with the teacher's labels."""
    passed: Annotated[int, Field(ge=0)] = 0
    """Copies of each sequence that start from where another one ended, with the teacher's labels;
    they are sequences of twice the length (ruiz2025understanding)."""
    extra_steps: Annotated[int, Field(ge=0)] = 0
    """Steps after the usual end."""
    untied: bool = False
    """Whether the student starts as drawn, without the published tie of its two largest entries."""

    @property
    def asks_teacher(self) -> bool:
        """Whether it needs labels that the training set does not have."""
        return self.truncations > 0 or self.passed > 0


def filtered(
    data: TrainingSet, scores: Float64[np.ndarray, " n"], *, rate: float
) -> tuple[TrainingSet, Int[np.ndarray, " removed"]]:
    """Without the share `rate` of sequences with the highest scores; of equal ones the earlier go.

    Returns:
        What is left, in order, and the indices of what was removed, in order.

    Raises:
        ValueError: If nothing would be left, or scores are NaN.
    """
    count = round(rate * len(data.x))
    if not 0 <= count < len(data.x) or np.isnan(scores).any():
        raise ValueError(
            violation(
                "`filtered(scores, rate=...)`",
                "have a rate in [0, 1) that leaves a sequence, and scores without NaN",
                f"rate {rate} of {len(data.x)} sequences, {int(np.isnan(scores).sum())} NaN",
            )
        )
    removed = np.sort(np.argsort(-scores, kind="stable")[:count])
    kept = np.setdiff1d(np.arange(len(scores)), removed)
    return chosen(data, kept), removed


def chosen(data: TrainingSet, rows: Int[np.ndarray, " rows"]) -> TrainingSet:
    """Some sequences of a training set."""
    return TrainingSet(
        x=data.x[rows], y=data.y[rows], is_special=data.is_special[rows], support=data.support[rows]
    )


def prepared(
    data: TrainingSet, defence: Defence, *, label: Callable[[np.ndarray], np.ndarray], noise: Noise
) -> TrainingSet:
    """The training set with the truncated and concatenated sequences that a defence adds.

    Args:
        data: Training set.
        defence: What is added.
        label: The teacher's last output for sequences of any length.
        noise: Where to truncate, and which sequence comes before which.
    """
    n, length = data.x.shape
    longer = 2 * length if defence.passed else length
    rows = [_from_the_left(data.x, longer)]
    for copy in range(defence.truncations):
        ends = 1 + noise.fork("truncate", copy).integers(n, high=length).numpy()
        rows.append(
            np.stack(
                [_from_the_left(row[:end], longer) for row, end in zip(data.x, ends, strict=True)]
            )
        )
    for copy in range(defence.passed):
        before = data.x[noise.fork("pass", copy).permutation(n).numpy()]
        rows.append(np.concatenate([before, data.x], axis=1))
    x = np.concatenate(rows)
    return TrainingSet(
        x=x,
        y=np.concatenate([data.y, label(x[n:])]) if len(x) > n else data.y,
        is_special=np.tile(data.is_special, len(rows)),
        support=np.concatenate([_from_the_left(data.support, longer), x[n:] != 0]),
    )


def _from_the_left(x: np.ndarray, length: int) -> np.ndarray:
    """Zeros before, which leave the last output as it is: the state starts from zero."""
    pad = [(0, 0)] * (x.ndim - 1) + [(length - x.shape[-1], 0)]
    return np.pad(x, pad)


def defended(
    study: Beyond,
    cases: Sequence[Case],
    defence: Defence,
    *,
    progress: Callable[[float], None] | None = None,
) -> list[Trace]:
    """Trains the student of every case under a defence, from the same seeds as without it.

    Args:
        study: Setting of the experiment beyond the theorem.
        cases: What to train on.
        defence: How the students are protected.
        progress: Told the share that is done.
    """
    teacher = diagonal_teacher(*study.teacher)
    chosen_start = study.start
    if defence.untied:
        chosen_start = dataclasses.replace(chosen_start, gap_rate=None)
    data = [
        prepared(
            case.data, defence, label=teacher.last_output, noise=Noise(case.seed).fork("defence")
        )
        for case in cases
    ]
    starts = [
        student(chosen_start, d_state=study.d_state, noise=Noise(case.seed)) for case in cases
    ]
    learner = DefendedDescent(
        stack(starts),
        data,
        base_step=np.full(len(cases), study.base_step),
        fixed_weights=study.fixed_weights,
        defence=defence,
    )
    stop = dataclasses.replace(study.stop, extra_steps=study.stop.extra_steps + defence.extra_steps)
    return train(
        learner, runs=len(cases), d_state=study.d_state, stop=stop, points=20, progress=progress
    )


class DefendedDescent(AdaptiveDescent):
    """Adaptive descent under a defence that changes how the student learns."""

    def __init__(
        self,
        start: LinearSSM,
        data: Sequence[TrainingSet],
        *,
        base_step: Float64[np.ndarray, " runs"],
        fixed_weights: bool = False,
        defence: Defence,
    ):
        """Prepares the runs; arguments as for `AdaptiveDescent`, and the defence.

        Raises:
            ValueError: If a start cannot be written as exp(-exp(nu)).
        """
        super().__init__(start, data, base_step=base_step, fixed_weights=fixed_weights)
        self._defence = defence
        self._nu = np.zeros_like(self.a)
        if defence.parametrisation == "exponential":
            self._nu = double_log(self.a)

    def gradient(
        self,
    ) -> tuple[
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, "runs d_state"],
        Float64[np.ndarray, " runs"],
    ]:
        """Of what is trained in the place of a, of b and c, and the norm of the first.

        Penalties see the diagonal of A alone, so its entries elsewhere stay in the norm as they
        are without them.
        """
        da, db, dc, norm = super().gradient()
        defence = self._defence
        if defence.l1 or defence.hankel or defence.forget:
            aside = np.maximum(norm**2 - (da**2).sum(axis=1), 0)
            extra = self._penalty()
            da, db, dc = da + extra[0], db + extra[1], dc + extra[2]
            norm = np.sqrt(aside + (da**2).sum(axis=1))
        if defence.parametrisation == "exponential":
            a = self._table[:, 1]
            da = da * a * np.log(a)
            norm = np.sqrt((da**2).sum(axis=1))
        if defence.clip is not None:
            size = np.sqrt((da**2).sum(axis=1))
            share = np.minimum(1.0, defence.clip / np.maximum(size, np.finfo(float).tiny))
            da, norm = da * share[:, None], norm * share
        return da, db, dc, norm

    def _penalty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of the weighted penalties on a, b and c."""
        a, gains = self._table[:, 1], self.b * self.c
        lags = self._table.shape[1]
        da = self._defence.l1 * np.sign(a)
        to_gains = np.zeros_like(a)
        if self._defence.hankel:
            forward = self._table.swapaxes(1, 2)  # a_j^p at [run, j, p], p < lags
            weighted = forward * (gains * a)[:, :, None]
            left, _, right = np.linalg.svd(forward.swapaxes(1, 2) @ weighted)
            polar = left @ right
            moment = np.einsum("rjp,rpq,rjq->rj", forward, polar, forward)
            order = np.arange(float(lags))
            slope = np.einsum("rjp,rpq,rjq->rj", forward * (2 * order + 1), polar, forward)
            to_gains = self._defence.hankel * moment * a
            da = da + self._defence.hankel * gains * slope
        db, dc = to_gains * self.c, to_gains * self.b
        if self._defence.forget:
            # The label does not know the initial state s: E (c^T A^L s)^2 = sum_j c_j^2 a_j^{2L}.
            left_over = self._defence.forget * self.c * (self._table[:, -1] * a)
            dc = dc + 2 * left_over * self._table[:, -1] * a
            da = da + 2 * lags * left_over * self.c * self._table[:, -1]
        return da, db, dc

    def update(self) -> None:
        """One step."""
        if self._defence.parametrisation == "exponential":
            # The rule steps whatever stands in the place of a; the gradient above is that of nu.
            self.a = self._nu.copy()
            super().update()
            self._nu, self.a = self.a, np.exp(-np.exp(self.a))
            return
        super().update()
        if self._defence.parametrisation == "clamped":
            np.clip(self.a, -1.0, 1.0, out=self.a)

    def keep(self, rows: Bool[np.ndarray, " runs"]) -> None:
        """Leaves only these runs in the batch."""
        super().keep(rows)
        self._nu = self._nu[rows]


def double_log(a: Float64[np.ndarray, "*runs d_state"]) -> Float64[np.ndarray, "*runs d_state"]:
    """The nu of a = exp(-exp(nu)).

    Raises:
        ValueError: If an entry is not in (0, 1).
    """
    if a.min() <= 0 or a.max() >= 1:
        raise ValueError(
            violation(
                "A start of the exponential parametrisation",
                "have all of A in (0, 1)",
                f"{a.min():.3g} to {a.max():.3g}",
                "Lower `Start(a_scale=..., warm=...)`.",
            )
        )
    return np.log(-np.log(a))
