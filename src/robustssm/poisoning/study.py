"""What the studies have in common: measuring students, and from traces to records."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from robustssm.core.config import to_dict
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM
from robustssm.poisoning.dynamics import gamma_coefficients
from robustssm.poisoning.metrics import (
    contribution_rank,
    effective_rank,
    generalisation_error,
    hankel_singular_values,
)
from robustssm.poisoning.sequences import TrainingSet
from robustssm.poisoning.summaries import INTERVAL, summarise
from robustssm.poisoning.training import Progress, Students, Trace
from robustssm.records.poisoning import Path, PoisonResult, PoisonRun

TEST_SEQUENCES = 2000


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One run to be made: condition, seed, and what the student learns from."""

    condition: str
    seed: int
    data: TrainingSet


@dataclass(frozen=True, eq=False, kw_only=True)
class Yardstick:
    """Measures students against their teacher.

    Without a network the error is that of the impulse response, in the maximum norm; with one it
    is the relative l2 error over 2000 sequences with N(0, 1) entries everywhere.
    """

    teacher: Students
    length: int
    horizon: int
    """Of the headline error."""
    first_lag: int = 0
    """1 where b and c are held, which leaves lag 0 as it is."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Lengths at which errors are taken: 20, 40 and twice the training length."""
        return tuple(sorted({20, 40, 2 * self.length, self.horizon}))

    @np.errstate(over="ignore", invalid="ignore")
    def errors(
        self, students: Students, *, seed: int, horizon: int | None = None
    ) -> Float64[np.ndarray, "*runs"]:
        """Generalisation errors, infinite where a student explodes."""
        horizon = horizon or self.horizon
        if self.teacher.slopes is None:
            return generalisation_error(
                students.ssm, self.teacher.ssm, horizon=horizon, first=self.first_lag
            )
        noise = Noise(seed).fork("test")
        longest = noise.normal(TEST_SEQUENCES, self.horizons[-1], dtype=torch.float64).numpy()
        x = longest[:, -horizon:]
        wanted = self.teacher.predict(x)
        missed = np.linalg.norm(students.predict(x) - wanted, axis=-1)
        error = missed / np.linalg.norm(wanted)
        return np.where(np.isnan(error), np.inf, error)

    @np.errstate(over="ignore", invalid="ignore")
    def response(self, students: Students) -> Float64[np.ndarray, "*runs lags"]:
        """Impulse response over the headline horizon, times g(1) behind a network."""
        response = students.ssm.impulse_response(self.horizon)
        return response if students.slopes is None else response * students.slopes[..., :1]

    @np.errstate(over="ignore", invalid="ignore")
    def path(self, case: Case, trace: Trace) -> Path:
        """The record of a run over training."""
        students = trace.students
        z = students.ssm.last_output(case.data.x)
        slope = students.slope(z)
        gamma = gamma_coefficients(case.data.x, case.data.y - slope * z, slope)
        rank = contribution_rank(students.ssm, lags=self.length)
        return Path(
            steps=tuple(float(step) for step in trace.steps),
            train_mse=_rounded(np.array(trace.train_mse)),
            error=_rounded(self.errors(students, seed=case.seed)),
            moduli=tuple(_rounded(row) for row in np.abs(students.ssm.a)),
            effective_rank=_rounded(effective_rank(students.ssm.a)),
            contribution_rank=_rounded(rank),
            gamma=tuple(_rounded(row) for row in gamma),
        )

    def matched(
        self, case: Case, trace: Trace, levels: Sequence[float]
    ) -> Mapping[str, float | None]:
        """Training loss to the headline error where the loss first came below it."""
        return {
            f"{level:g}": None
            if (there := trace.at_level(level)) is None
            else float(self.errors(there, seed=case.seed))
            for level in levels
        }

    @np.errstate(over="ignore", invalid="ignore")
    def run(self, case: Case, trace: Trace, levels: Sequence[float] = ()) -> PoisonRun:
        """The record of a run."""
        final = trace.final
        return PoisonRun(
            condition=case.condition,
            seed=case.seed,
            train_mse=trace.train_mse[-1],
            error={
                str(h): float(self.errors(final, seed=case.seed, horizon=h)) for h in self.horizons
            },
            effective_rank=float(effective_rank(final.ssm.a)),
            contribution_rank=float(contribution_rank(final.ssm, lags=self.length)),
            max_modulus=float(np.abs(final.ssm.a).max()),
            steps=float(trace.steps[-1]),
            converged=trace.reached_at is not None,
            diverged=trace.diverged,
            matched=self.matched(case, trace, levels),
            hankel=_hankel(final.ssm, self.horizon),
            response=_floats(self.response(final)),
            path=self.path(case, trace),
        )

    def result(
        self,
        settings: Any,
        cases: Sequence[Case],
        runs: Sequence[PoisonRun],
        **more: Any,
    ) -> PoisonResult:
        """The record of a study: settings, runs, and their summaries by condition."""
        noise = Noise(0).fork("interval")
        lags = {case.condition: case.data.excited_lags for case in cases}
        return PoisonResult(
            study=type(settings).__name__.lower(),
            settings=to_dict(settings),
            length=self.length,
            horizon=self.horizon,
            interval=INTERVAL,
            runs=tuple(runs),
            summaries=tuple(
                summarise([r for r in runs if r.condition == name], self.horizon, noise)
                for name in lags
            ),
            teacher_response=_floats(self.response(self.teacher)),
            excited_lags=lags,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Starts when it is made."""

    started: tuple[float, float] = field(
        default_factory=lambda: (time.perf_counter(), time.process_time())
    )

    @property
    def wall_seconds(self) -> float:
        """Seconds that have passed."""
        return time.perf_counter() - self.started[0]

    @property
    def cpu_seconds(self) -> float:
        """Seconds of the processor that this process took."""
        return time.process_time() - self.started[1]


def part(progress: Progress | None, name: str, begin: float, end: float) -> Callable[[float], None]:
    """Tells `progress` of the share of one part that fills [begin, end] of the study."""

    def tell(share: float) -> None:
        if progress is not None:
            progress(name, begin + (end - begin) * share)

    return tell


def check_sizes(teacher: int, student: int) -> None:
    """Refuses a teacher with as many states as its student, or more.

    Raises:
        ValueError: If there is no room for an implicit bias.
    """
    if teacher >= student:
        raise ValueError(
            violation(
                "The student",
                "have more states than its teacher, or there is no choice left to its bias",
                f"{student} states for a teacher of {teacher}",
                "Raise d_state; the published settings have 10 and 20.",
            )
        )


def _hankel(ssm: LinearSSM, lags: int) -> tuple[float, ...]:
    if not np.isfinite(ssm.impulse_response(lags)).all():
        return ()
    return _floats(hankel_singular_values(ssm, lags=lags)[:10])


def _rounded(values: Float64[np.ndarray, "..."]) -> tuple[float, ...]:
    """To 6 significant digits: paths are for figures, and would else be most of a result's file."""
    return tuple(float(f"{value:.6g}") for value in values)


def _floats(values: Float64[np.ndarray, "..."]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
