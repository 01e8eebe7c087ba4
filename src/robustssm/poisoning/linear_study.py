"""Standalone SSMs beyond the theorem: A, b and c all trained by adaptive gradient descent."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher
from robustssm.poisoning.descent import AdaptiveDescent, stack
from robustssm.poisoning.initialisation import Start, student
from robustssm.poisoning.sequences import Sequences, check_positions, dense, ordinary, special
from robustssm.poisoning.study import Case, Clock, Yardstick, check_sizes, part
from robustssm.poisoning.summaries import contrast
from robustssm.poisoning.training import Progress, Stop, Students, Trace, train
from robustssm.records.poisoning import PoisonResult, PoisonRun

CONTRASTS = (("special", "ordinary"), ("placebo", "ordinary"), ("dense", "ordinary"))
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)

Maker = Callable[[Noise], Sequences]
"""Makes the training sequences of one seed."""


@settings
class Beyond:
    """Setting of the experiment beyond Theorem 1; the defaults are the published one for length 6.

    Source: slutzky2024implicit, section 4.2, with fresh seeds.
    """

    length: Annotated[int, Field(ge=3)] = 6
    d_state: Annotated[int, Field(ge=2)] = 10
    teacher: tuple[float, ...] = (1.0,)
    """Diagonal of the teacher, with b = c = 1."""
    start: Start = Start()
    support: tuple[int, ...] = (1, 2)
    """Positions, from 1, at which ordinary sequences have something."""
    ordinary_count: Annotated[int, Field(ge=1)] = 8
    extra_count: Annotated[int, Field(ge=1)] = 10
    """Special, placebo or dense sequences that are added."""
    special_positions: tuple[int, ...] | None = None
    """Positions of the special sequences; None is the last but one."""
    base_step: Annotated[float, Field(gt=0)] = 0.01
    special_step: Annotated[float | None, Field(gt=0)] = None
    """Base step of the special condition; None is `base_step`."""
    fixed_weights: bool = False
    """Whether b and c are held at 1, after a first step from where they are drawn."""
    stop: Stop = Stop()
    matched_step: Annotated[float, Field(gt=0)] = 0.002
    """Smaller base step of the runs that are read at equal training loss: the published one jitters
    above the lower levels."""
    matched_stop: Stop = Stop(level=1e-5, extra_steps=0)
    levels: tuple[float, ...] = LEVELS
    """Training losses at which the conditions are compared."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = tuple(range(64))
    """Each draws a student and its training sequences anew."""
    horizon: Annotated[int, Field(ge=2)] = 40

    def __post_init__(self) -> None:
        diagonal_teacher(*self.teacher)  # refuses an unstable one
        check_sizes(len(self.teacher), self.d_state)
        check_positions(self.length, ordinary=self.support, special=self.special_positions)

    @classmethod
    def published(cls, length: int) -> "Beyond":
        """The published setting for length 6 or 10.

        Raises:
            ValueError: If there is none for that length.
        """
        if length == 6:
            return cls()
        if length == 10:
            return cls(
                length=10,
                d_state=20,
                start=Start(a_scale=1e-2, gap_rate=3.0),
                support=tuple(range(1, 8)),
                base_step=0.001,
                matched_step=0.0002,
                matched_stop=Stop(level=1e-5, extra_steps=0, max_steps=100_000),
                seeds=tuple(range(32)),
            )
        raise ValueError(
            f"The published settings beyond the theorem must be of length 6 or 10; got {length}. "
            "Build `Beyond(length=..., support=..., ...)` for another."
        )

    def makers(self) -> Mapping[str, Maker]:
        """Condition to its training sequences; all share those of "ordinary"."""
        length, extra = self.length, self.extra_count

        def base(noise: Noise) -> Sequences:
            return ordinary(
                self.ordinary_count,
                length=length,
                support=self.support,
                noise=noise.fork("ordinary"),
            )

        def poison(noise: Noise) -> Sequences:
            return special(
                extra,
                length=length,
                noise=noise.fork("special"),
                positions=self.special_positions,
            )

        def more(noise: Noise) -> Sequences:
            return ordinary(extra, length=length, support=self.support, noise=noise.fork("placebo"))

        return {
            "ordinary": base,
            "special": lambda n: base(n) + poison(n),
            "placebo": lambda n: base(n) + more(n),
            "dense": lambda n: base(n) + dense(extra, length=length, noise=n.fork("dense")),
        }


def beyond(study: Beyond, *, progress: Progress | None = None) -> PoisonResult:
    """Runs the experiment beyond the theorem with its controls.

    Conditions: ordinary; special (more sequences, at the last position but one alone); placebo (as
    many more ordinary ones); dense (as many with entries everywhere, as natural data have).
    Where the arms stopped they differ in training loss, and most of the published ratio is that:
    a second set of runs, with a smaller step, is compared at equal training loss.

    Args:
        study: Setting.
        progress: Told how far it has come.
    """
    clock, makers = Clock(), study.makers()
    cases = cases_of(study, makers)
    runs = descent_runs(study, cases, progress=part(progress, "published step", 0, 0.3))
    slow = dataclasses.replace(
        study, base_step=study.matched_step, special_step=None, stop=study.matched_stop
    )
    traces = descend(slow, cases, study.levels, progress=part(progress, "matched loss", 0.3, 1))
    measure = yardstick(study)
    runs = [
        dataclasses.replace(run, matched=measure.matched(case, trace, study.levels))
        for run, case, trace in zip(runs, cases, traces, strict=True)
    ]
    contrasts = tuple(
        contrast(runs, above=above, below=below, horizon=study.horizon, level=level)
        for above, below in CONTRASTS
        for level in (None, *study.levels)
    )
    return measure.result(
        study,
        cases,
        runs,
        contrasts=contrasts,
        remarks=_remarks(study, runs),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def cases_of(study: Beyond, makers: Mapping[str, Maker]) -> list[Case]:
    """One case for every condition and seed."""
    teacher = diagonal_teacher(*study.teacher)
    return [
        Case(condition=name, seed=seed, data=make(Noise(seed)).labelled(teacher))
        for name, make in makers.items()
        for seed in study.seeds
    ]


def descent_runs(
    study: Beyond, cases: Sequence[Case], *, progress: Callable[[float], None] | None = None
) -> list[PoisonRun]:
    """Trains every case until its stop rule, and measures it."""
    measure = yardstick(study)
    traces = descend(study, cases, progress=progress)
    return [measure.run(case, trace) for case, trace in zip(cases, traces, strict=True)]


def descend(
    study: Beyond,
    cases: Sequence[Case],
    levels: Sequence[float] = (),
    *,
    progress: Callable[[float], None] | None = None,
) -> list[Trace]:
    """Trains every case until its stop rule.

    Args:
        study: Setting.
        cases: What to train on; students come from their seeds.
        levels: Training losses at whose first crossing the state is kept.
        progress: Told the share that is done.
    """
    learner = AdaptiveDescent(
        _starts(study, cases),
        [case.data for case in cases],
        base_step=np.array([_step(study, case.condition) for case in cases]),
        fixed_weights=study.fixed_weights,
    )
    return train(
        learner,
        runs=len(cases),
        d_state=study.d_state,
        stop=study.stop,
        levels=levels,
        progress=progress,
    )


def yardstick(study: Beyond) -> Yardstick:
    """How the students are measured."""
    teacher = Students(ssm=diagonal_teacher(*study.teacher))
    return Yardstick(
        teacher=teacher,
        length=study.length,
        horizon=study.horizon,
        first_lag=int(study.fixed_weights),
    )


def _step(study: Beyond, condition: str) -> float:
    chosen = study.special_step if condition == "special" else None
    return study.base_step if chosen is None else chosen


def _starts(study: Beyond, cases: Sequence[Case]) -> LinearSSM:
    return stack(
        [student(study.start, d_state=study.d_state, noise=Noise(case.seed)) for case in cases]
    )


def _remarks(study: Beyond, runs: Sequence[PoisonRun]) -> tuple[str, ...]:
    largest = max(run.max_modulus for run in runs if run.condition == "special")
    stuck = sum(not run.converged for run in runs)
    return (
        "Where they stopped, the arms differ in training loss; compare them at equal loss.",
        f"The largest |a| of a poisoned student is {largest:.3f}; over {study.horizon} lags that "
        f"grows to {largest ** (study.horizon - 1):.3g}, so the error there also measures "
        "stability.",
        f"{stuck} of {len(runs)} runs did not reach a training loss of {study.stop.level:g} in "
        f"{study.stop.max_steps} steps; they count with the error they had.",
    )
