"""An SSM inside a ReLU network, trained by Adam: as published, and with independent layers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import diagonal_teacher
from robustssm.poisoning.descent import stack
from robustssm.poisoning.initialisation import Head, Start, head, student, teacher_head
from robustssm.poisoning.network import AdamNetwork, with_head
from robustssm.poisoning.sequences import (
    Sequences,
    TrainingSet,
    check_positions,
    ordinary,
    special,
)
from robustssm.poisoning.study import Case, Clock, Yardstick, check_sizes, part
from robustssm.poisoning.summaries import contrast
from robustssm.poisoning.training import Progress, Stop, Trace, train
from robustssm.records.poisoning import PoisonResult, PoisonRun

LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)

CONTRASTS = (
    ("special", "ordinary"),
    ("placebo", "ordinary"),
    ("special_independent", "ordinary_independent"),
)


@settings
class Network:
    """Setting of the experiment in a network; the defaults are the published one for length 6.

    Source: slutzky2024implicit, section 4.2, with fresh seeds.
    """

    length: Annotated[int, Field(ge=3)] = 6
    d_state: Annotated[int, Field(ge=2)] = 10
    width: Annotated[int, Field(ge=1)] = 15
    """Units of each of the two hidden layers, of the student and of the teacher."""
    start: Start = Start(a_scale=0.01, weight_scale=0.01, gap_rate=0.5, warm=1e-3)
    head_scale: Annotated[float, Field(gt=0)] = 0.03
    support: tuple[int, ...] = (1, 2)
    special_positions: tuple[int, ...] | None = None
    """Positions of the special sequences; None is the last but one."""
    ordinary_count: Annotated[int, Field(ge=1)] = 20
    extra_count: Annotated[int, Field(ge=1)] = 20
    rate: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of Adam."""
    special_rate: Annotated[float, Field(gt=0)] = 0.01
    """The same with special sequences; as published, 200 times smaller at length 10."""
    stop: Stop = Stop(extra_steps=5000, max_steps=90_000)
    special_stop: Stop | None = None
    """Stop rule with special sequences; None is `stop`."""
    levels: tuple[float, ...] = LEVELS
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = tuple(range(16))
    horizon: Annotated[int, Field(ge=2)] = 40

    def __post_init__(self) -> None:
        check_sizes(1, self.d_state)
        check_positions(self.length, ordinary=self.support, special=self.special_positions)
        if self.horizon < self.length:
            raise ValueError(
                violation("`Network(horizon=...)`", "be at least the training length", self.horizon)
            )

    @classmethod
    def published(cls, length: int) -> "Network":
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
                width=25,
                start=Start(a_scale=1e-3, weight_scale=1e-3, gap_rate=2.0, warm=1e-3),
                head_scale=0.1,
                support=tuple(range(1, 8)),
                special_rate=5e-5,
                stop=Stop(level=0.05, extra_steps=5000, max_steps=90_000),
            )
        raise ValueError(
            f"The published settings in a network must be of length 6 or 10; got {length}. "
            "Build `Network(length=..., support=..., ...)` for another."
        )

    def sequences(self, condition: str, noise: Noise) -> Sequences:
        """The training sequences of one seed; all conditions share the ordinary ones."""

        def plain(count: int, name: str) -> Sequences:
            return ordinary(count, length=self.length, support=self.support, noise=noise.fork(name))

        base = plain(self.ordinary_count, "ordinary")
        if condition.startswith("special"):
            return base + special(
                self.extra_count,
                length=self.length,
                noise=noise.fork("special"),
                positions=self.special_positions,
            )
        return base + plain(self.extra_count, "placebo") if condition == "placebo" else base


def network(study: Network, *, progress: Progress | None = None) -> PoisonResult:
    """Runs the experiment in a network with its controls.

    Conditions: ordinary, special and placebo with layers that share one stream of random numbers,
    as published; "ordinary_independent" and "special_independent" with layers drawn independently.

    Args:
        study: Setting.
        progress: Told how far it has come.
    """
    clock = Clock()
    shared, alone = ("ordinary", "special", "placebo"), ("ordinary", "special")
    first, runs = network_runs(study, shared, progress, share=(0, 0.6))
    apart = dataclasses.replace(
        study, start=dataclasses.replace(study.start, streams="independent")
    )
    second, more = network_runs(apart, alone, progress, share=(0.6, 1))
    cases = [
        *first,
        *(dataclasses.replace(case, condition=f"{case.condition}_independent") for case in second),
    ]
    runs += [dataclasses.replace(run, condition=f"{run.condition}_independent") for run in more]
    contrasts = tuple(
        contrast(runs, above=above, below=below, horizon=study.horizon, level=level)
        for above, below in CONTRASTS
        for level in (None, *study.levels)
    )
    measure = yardstick(study)
    return measure.result(
        study,
        cases,
        runs,
        contrasts=contrasts,
        remarks=_remarks(runs),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )


def network_runs(
    study: Network,
    conditions: Sequence[str],
    progress: Progress | None = None,
    *,
    share: tuple[float, float] = (0.0, 1.0),
) -> tuple[list[Case], list[PoisonRun]]:
    """Trains and measures every condition and seed; those of one stop rule step together."""
    batches = [[name for name in conditions if study.special_stop is None or name != "special"]]
    if study.special_stop is not None and "special" in conditions:
        batches.append(["special"])
    cases, runs, measure = [], [], yardstick(study)
    begin, width = share[0], (share[1] - share[0]) / len(batches)
    for batch in batches:
        tell = part(progress, f"{study.start.streams} streams", begin, begin + width)
        made = _cases(study, batch)
        for case, trace in zip(made, _train(study, made, tell), strict=True):
            cases.append(case)
            runs.append(measure.run(case, trace, study.levels))
        begin += width
    return cases, runs


def yardstick(study: Network) -> Yardstick:
    """How the students are measured."""
    teacher = with_head(diagonal_teacher(1.0), teacher_head(study.width))
    return Yardstick(teacher=teacher, length=study.length, horizon=study.horizon)


def _cases(study: Network, conditions: Sequence[str]) -> list[Case]:
    teacher = yardstick(study).teacher
    cases = []
    for condition in conditions:
        for seed in study.seeds:
            made = study.sequences(condition, Noise(seed))
            data = TrainingSet(
                x=made.x,
                y=teacher.predict(made.x),
                is_special=made.is_special,
                support=made.support,
            )
            cases.append(Case(condition=condition, seed=seed, data=data))
    return cases


def _train(study: Network, cases: Sequence[Case], progress: Callable[[float], None]) -> list[Trace]:
    noises = [Noise(case.seed) for case in cases]
    heads = [head(study.start, width=study.width, scale=study.head_scale, noise=n) for n in noises]
    poisoned = cases[0].condition == "special" and study.special_stop is not None
    learner = AdamNetwork(
        stack([student(study.start, d_state=study.d_state, noise=n) for n in noises]),
        Head(
            inward=np.stack([h.inward for h in heads]),
            hidden=np.stack([h.hidden for h in heads]),
            outward=np.stack([h.outward for h in heads]),
        ),
        [case.data for case in cases],
        rate=np.array([_rate(study, case.condition) for case in cases]),
    )
    return train(
        learner,
        runs=len(cases),
        d_state=study.d_state,
        stop=study.special_stop if poisoned and study.special_stop else study.stop,
        levels=study.levels,
        progress=progress,
    )


def _rate(study: Network, condition: str) -> float:
    return study.special_rate if condition == "special" else study.rate


def _remarks(runs: Sequence[PoisonRun]) -> tuple[str, ...]:
    reached: dict[str, list[bool]] = {}
    for run in runs:
        reached.setdefault(run.condition, []).append(run.converged)
    rates = "; ".join(f"{name} {sum(got)} of {len(got)}" for name, got in reached.items())
    return (
        f"Runs that reached the level of the stop rule: {rates}. The others sit on a plateau and "
        "count with the error they have there.",
        "The published initialisation draws every layer from one stream of random numbers, so that "
        "the first and the last layer of the network start equal; compare the independent one.",
        "Effective rank counts states that hardly reach the output; read it beside the rank of "
        "contributions.",
    )
