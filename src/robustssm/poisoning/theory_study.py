"""The experiment of Theorem 1: gradient flow on A alone, from the published seeds, exactly."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from robustssm.core.config import settings
from robustssm.models.linear_ssm import LinearSSM, theorem_teacher
from robustssm.poisoning.dynamics import gradient_flow
from robustssm.poisoning.initialisation import theorem_start, tie_gap
from robustssm.poisoning.sequences import Sequences, impulse
from robustssm.poisoning.study import Case, Clock, Yardstick, check_sizes, part
from robustssm.poisoning.summaries import contrast
from robustssm.poisoning.training import Progress, Students, Trace
from robustssm.records.poisoning import PoisonResult, PoisonRun

CONTRASTS = (
    ("special", "ordinary"),
    ("stealthy", "ordinary"),
    ("placebo", "ordinary"),
    ("special_untied", "ordinary_untied"),
)


@settings
class Theory:
    """Setting of the experiment per Theorem 1; the defaults are the published one for length 7.

    Source: slutzky2024implicit, section 4.1.
    """

    length: Annotated[int, Field(ge=3)] = 7
    d_state: Annotated[int, Field(ge=3)] = 10
    scale: Annotated[float, Field(gt=0)] = 1e-3
    """Initial entries are uniform on [0, scale]."""
    gap: Annotated[float | None, Field(ge=0)] = tie_gap(1e-3, 5.0)
    """Distance of the two largest; None leaves them as drawn, and then there is no poisoning."""
    special_value: Annotated[float, Field(ge=0)] = 1.0
    """Entry of the special sequence, at the last position but one."""
    stealthy_value: Annotated[float, Field(gt=0)] = 1e-3
    """Entry that the stealthy condition hides in an ordinary sequence."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (242, 243, 244, 246)
    """Of numpy's legacy generator. The published lists have gaps, which suggests a selection."""
    horizon: Annotated[int, Field(ge=2)] = 20

    def __post_init__(self) -> None:
        check_sizes(2, self.d_state)

    @classmethod
    def published(cls, length: int) -> "Theory":
        """The published setting for length 7 or 9.

        Raises:
            ValueError: If there is none for that length.
        """
        if length == 7:
            return cls()
        if length == 9:
            return cls(
                length=9,
                d_state=20,
                scale=5e-3,
                gap=tie_gap(5e-3, 10.0),
                seeds=(342, 344, 345, 346),
            )
        raise ValueError(
            f"The published settings of the theorem must be of length 7 or 9; got {length}. "
            "Build `Theory(length=..., d_state=..., ...)` for another."
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Arm:
    """One condition of the theorem's experiment."""

    condition: str
    sequences: Sequences
    tied: bool = True
    """Whether the tie gap of the settings holds; else the draw stays as it is."""


def theory(study: Theory, *, progress: Progress | None = None) -> PoisonResult:
    """Runs the theorem's experiment with its controls.

    Conditions: ordinary; special (one more sequence, at the last position but one); placebo (one
    more ordinary sequence); stealthy (the late entry hidden inside a second ordinary sequence);
    and the first two without the tie of the two largest entries ("untied").

    Args:
        study: Setting.
        progress: Told how far it has come.
    """
    clock, length = Clock(), study.length
    plain = impulse((1, 1.0), length=length)
    poison = impulse((length - 1, study.special_value), length=length, is_special=True)
    hidden = impulse((1, 1.0), (length - 1, study.stealthy_value), length=length, is_special=True)
    arms = (
        Arm(condition="ordinary", sequences=plain),
        Arm(condition="special", sequences=plain + poison),
        Arm(condition="placebo", sequences=plain + impulse((1, 0.5), length=length)),
        Arm(condition="stealthy", sequences=plain + hidden),
        Arm(condition="ordinary_untied", sequences=plain, tied=False),
        Arm(condition="special_untied", sequences=plain + poison, tied=False),
    )
    cases, runs = flow_runs(study, arms, progress=progress)
    contrasts = tuple(
        contrast(runs, above=above, below=below, horizon=study.horizon)
        for above, below in CONTRASTS
    )
    untied = contrasts[-1]
    assert untied.above_median is not None and untied.below_median is not None
    return yardstick(study).result(
        study,
        cases,
        runs,
        contrasts=contrasts,
        remarks=(
            "Every run is followed to the same training loss, so the arms are loss-matched.",
            "With initial entries as they are drawn, without the tie of the two largest, the "
            f"median error is {untied.above_median:.2g} with the special sequence and "
            f"{untied.below_median:.2g} without it: the theorem's effect needs the tie.",
            f"Intervals over {len(study.seeds)} seeds are coarse; the published seeds are a choice "
            "of their authors.",
        ),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def flow_runs(
    study: Theory, arms: Sequence[Arm], *, progress: Progress | None = None
) -> tuple[list[Case], list[PoisonRun]]:
    """Follows gradient flow for every arm and seed."""
    teacher, measure = theorem_teacher(study.d_state), yardstick(study)
    weights = np.ones(study.d_state)
    cases, runs = [], []
    for arm in arms:
        data = arm.sequences.labelled(teacher)
        for seed in study.seeds:
            gap = study.gap if arm.tied else None
            a = theorem_start(seed, d_state=study.d_state, scale=study.scale, gap=gap)
            flow = gradient_flow(LinearSSM(a=a, b=weights, c=weights), data)
            packed = np.concatenate([flow.a, np.ones((len(flow.a), 2 * study.d_state))], axis=1)
            trace = Trace(
                d_state=study.d_state,
                steps=flow.times.tolist(),
                train_mse=flow.train_mse.tolist(),
                packed=list(packed),
                reached_at=float(flow.times[-1]) if flow.converged else None,
            )
            cases.append(Case(condition=arm.condition, seed=seed, data=data))
            runs.append(measure.run(cases[-1], trace))
            share = len(runs) / (len(arms) * len(study.seeds))
            part(progress, "gradient flow", 0, 1)(share)
    return cases, runs


def yardstick(study: Theory) -> Yardstick:
    """How the theorem's students are measured."""
    teacher = Students(ssm=theorem_teacher(study.d_state))
    return Yardstick(teacher=teacher, length=study.length, horizon=study.horizon)
