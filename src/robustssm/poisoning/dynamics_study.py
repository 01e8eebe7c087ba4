"""How |a_j|, effective rank and gamma move during training, for teachers of 1 to 4 states."""

from typing import Annotated, Literal

from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.errors import violation
from robustssm.poisoning.initialisation import Start
from robustssm.poisoning.linear_study import Beyond, cases_of, descent_runs
from robustssm.poisoning.linear_study import yardstick as linear_yardstick
from robustssm.poisoning.network_study import Network, network_runs
from robustssm.poisoning.network_study import yardstick as network_yardstick
from robustssm.poisoning.study import Clock, part
from robustssm.poisoning.summaries import contrast
from robustssm.poisoning.training import Progress, Stop
from robustssm.records.poisoning import PoisonResult

TEACHERS = {1: (1.0,), 2: (0.99, 0.8), 3: (0.99, 0.8, 0.5), 4: (0.99, 0.8, 0.5, 0.3)}
"""The published diagonals."""


@settings
class Dynamics:
    """Setting of the published figures of dynamics; starts near zero, without warm-up.

    Source: slutzky2024implicit, figures 2 to 8.
    """

    length: Literal[6, 10] = 6
    teacher_dim: Annotated[int, Field(ge=1, le=4)] = 1
    in_network: bool = False
    """Whether the SSM stands in front of a network; there the teacher has one state."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = tuple(range(8))
    max_steps: Annotated[int, Field(ge=1)] = 90_000

    def __post_init__(self) -> None:
        if self.in_network and self.teacher_dim != 1:
            raise ValueError(
                violation(
                    "`Dynamics(teacher_dim=...)`",
                    "be 1 with in_network=True, as no other was published",
                    self.teacher_dim,
                    "Leave the network out for teachers of 2 to 4 states.",
                )
            )

    def setting(self) -> Beyond | Network:
        """The experiment that it stands for."""
        if self.in_network:
            return self._in_network()
        return self._alone() if self.teacher_dim == 1 else self._fixed_weights()

    def _alone(self) -> Beyond:
        short = self.length == 6
        return Beyond(
            length=self.length,
            d_state=10 if short else 20,
            start=Start(
                a_scale=0.01 if short else 0.001,
                weight_scale=0.01 if short else 0.05,
                gap_rate=20.0,
                warm=0.0,
            ),
            support=self._support,
            special_positions=(self.length - 1, self.length),
            base_step=0.01,
            stop=Stop(level=0.01 if short else 0.05, extra_steps=5000, max_steps=self.max_steps),
            seeds=self.seeds,
        )

    def _fixed_weights(self) -> Beyond:
        short = self.length == 6
        return Beyond(
            length=self.length,
            d_state=10 if short else 20,
            teacher=TEACHERS[self.teacher_dim],
            start=Start(
                a_scale=0.01,
                weight_scale=0.01 if short else 0.001,
                gap_rate=2.0 if short else 3.0,
                warm=0.0,
                tied=self.teacher_dim,
            ),
            support=self._support,
            base_step=0.01 if short else 0.001,
            special_step=0.001,
            fixed_weights=True,
            stop=Stop(level=0.01, extra_steps=1500, max_steps=self.max_steps),
            seeds=self.seeds,
        )

    def _in_network(self) -> Network:
        short = self.length == 6
        return Network(
            length=self.length,
            d_state=10 if short else 20,
            width=15 if short else 25,
            start=Start(
                a_scale=0.01 if short else 0.001,
                weight_scale=0.01 if short else 0.001,
                gap_rate=0.5 if short else 2.0,
                warm=0.0,
            ),
            head_scale=0.03 if short else 0.1,
            support=self._support,
            special_positions=(self.length - 1, self.length),
            special_rate=0.001 if short else 5e-5,
            stop=Stop(level=0.05, extra_steps=5000 if short else 20_000, max_steps=self.max_steps),
            special_stop=Stop(level=0.05, extra_steps=5000, max_steps=self.max_steps),
            seeds=self.seeds,
        )

    @property
    def _support(self) -> tuple[int, ...]:
        return (1, 2) if self.length == 6 else tuple(range(1, 8))


def dynamics(study: Dynamics, *, progress: Progress | None = None) -> PoisonResult:
    """Trains on ordinary sequences, and with special ones, and records the whole paths.

    Args:
        study: Setting.
        progress: Told how far it has come.
    """
    clock, setting = Clock(), study.setting()
    if isinstance(setting, Network):
        cases, runs = network_runs(setting, ("ordinary", "special"), progress)
        measure = network_yardstick(setting)
    else:
        makers = setting.makers()
        cases = cases_of(setting, {name: makers[name] for name in ("ordinary", "special")})
        runs = descent_runs(setting, cases, progress=part(progress, "descent", 0, 1))
        measure = linear_yardstick(setting)
    ends = contrast(runs, above="special", below="ordinary", horizon=setting.horizon)
    stuck = sum(not run.converged for run in runs)
    remarks = [
        f"{stuck} of {len(runs)} runs did not reach a training loss of {setting.stop.level:g}.",
        "A higher effective rank is not by itself a higher error: a tail of small states may "
        "leave the response as it was.",
    ]
    if study.teacher_dim > 1:
        remarks.append(
            "b and c are put back to 1 after every step, as published: the first gradient still "
            "sees those drawn. Lag 0 is then d_state for the student, whatever it learns, and the "
            "error is taken from lag 1 on."
        )
    return measure.result(
        study,
        cases,
        runs,
        contrasts=(ends,),
        remarks=tuple(remarks),
        wall_seconds=clock.wall_seconds,
        cpu_seconds=clock.cpu_seconds,
    )
