"""The settings in which detectors and defences are scored, and training in them."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher, theorem_teacher
from robustssm.poisoning.defences import Defence, defended, prepared
from robustssm.poisoning.defended_flow import defended_flow
from robustssm.poisoning.detectors import (
    activation_clustering,
    deep_knn,
    final_states,
    gamma_influence,
    gradient_influence,
    leverage,
    spectral_signature,
    tail_energy,
)
from robustssm.poisoning.dynamics import gradient_flow
from robustssm.poisoning.excitation import excitation_share
from robustssm.poisoning.initialisation import theorem_start
from robustssm.poisoning.linear_study import Beyond, Maker, yardstick
from robustssm.poisoning.metrics import generalisation_error
from robustssm.poisoning.sequences import TrainingSet
from robustssm.poisoning.study import Case
from robustssm.poisoning.theory_study import Theory
from robustssm.poisoning.training import Students


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """A student after training."""

    case: Case
    path: Students
    """The kept states, arrays (states, d_state), the first before training."""
    error: float
    converged: bool

    @property
    def final(self) -> LinearSSM:
        """The student at the end."""
        return self._at(-1).ssm

    @property
    def initial(self) -> Students:
        """The student before training."""
        return self._at(0)

    def _at(self, place: int) -> Students:
        ssm = self.path.ssm
        return Students(ssm=LinearSSM(a=ssm.a[place], b=ssm.b[place], c=ssm.c[place]))


def suspicions(trained: Trained, names: Sequence[str]) -> Mapping[str, Float64[np.ndarray, " n"]]:
    """Detector to its scores of the sequences that a student was trained on."""
    x, y = trained.case.data.x, trained.case.data.y
    states = final_states(trained.final, x)
    if not np.isfinite(states).all():
        states = np.zeros_like(states)
    seen = Evidence(x=x, y=y, states=states, initial=trained.initial, path=trained.path)
    return {name: DETECTORS[name](seen) for name in names}


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What a detector may look at."""

    x: Float64[np.ndarray, "n length"]
    y: Float64[np.ndarray, " n"]
    states: Float64[np.ndarray, "n d_state"]
    """Of the trained student, after each sequence; zeros where it explodes."""
    initial: Students
    path: Students


DETECTORS: Mapping[str, Callable[[Evidence], Float64[np.ndarray, " n"]]] = {
    "tail energy": lambda e: tail_energy(e.x),
    "lag excitation": lambda e: excitation_share(e.x),
    "gamma at the start": lambda e: gamma_influence(e.x, e.y, e.initial),
    "gamma over training": lambda e: gamma_influence(e.x, e.y, e.path),
    "gradient on A": lambda e: gradient_influence(e.x, e.y, e.path),
    "leverage": lambda e: leverage(e.x),
    "spectral signature": lambda e: spectral_signature(e.states),
    "activation clustering": lambda e: activation_clustering(e.states),
    "deep k-NN": lambda e: deep_knn(e.states, e.y),
}


class Bench(ABC):
    """A setting: who poisons there, and how students are trained in it."""

    name: str
    length: int
    makers: Mapping[str, Maker]
    seeds: tuple[int, ...]
    teacher: LinearSSM

    def cases(self, attack: str) -> list[Case]:
        """What the students of every seed learn from under one attack."""
        made = self.makers[attack]
        return [
            Case(condition=attack, seed=seed, data=made(Noise(seed)).labelled(self.teacher))
            for seed in self.seeds
        ]

    @abstractmethod
    def train(self, cases: Sequence[Case], defence: Defence) -> list[Trained]:
        """Trains the students of some cases."""


class BeyondBench(Bench):
    """The setting beyond the theorem."""

    def __init__(self, study: Beyond, makers: Mapping[str, Maker], *, name: str = "beyond"):
        """Takes the setting and the attacks in it."""
        self.name, self.study, self.makers = name, study, makers
        self.length, self.seeds = study.length, study.seeds
        self.teacher = diagonal_teacher(*study.teacher)

    def train(self, cases: Sequence[Case], defence: Defence) -> list[Trained]:
        """See `Bench.train`."""
        measure = yardstick(self.study)
        return [
            Trained(
                case=case,
                path=trace.students,
                error=float(measure.errors(trace.final, seed=case.seed)),
                converged=trace.reached_at is not None,
            )
            for case, trace in zip(cases, defended(self.study, cases, defence), strict=True)
        ]


class TheoryBench(Bench):
    """The setting of Theorem 1: gradient flow on A, followed to its end."""

    def __init__(self, study: Theory, makers: Mapping[str, Maker]):
        """Takes the setting and the attacks in it."""
        self.name, self.study, self.makers = "theory", study, makers
        self.length, self.seeds = study.length, study.seeds
        self.teacher = theorem_teacher(study.d_state)

    def train(self, cases: Sequence[Case], defence: Defence) -> list[Trained]:
        """See `Bench.train`."""
        return [self._follow(case, defence) for case in cases]

    def _follow(self, case: Case, defence: Defence) -> Trained:
        study = self.study
        gap = None if defence.untied else study.gap
        a = theorem_start(case.seed, d_state=study.d_state, scale=study.scale, gap=gap)
        start = LinearSSM(a=a, b=np.ones_like(a), c=np.ones_like(a))
        noise = Noise(case.seed).fork("defence")
        data: TrainingSet = prepared(
            case.data, defence, label=self.teacher.last_output, noise=noise
        )
        converged = True
        if defence.parametrisation != "free" or defence.l1:
            end = defended_flow(start, data, dataclasses.replace(defence, name="none"))
            steps = np.stack([a, end.a])
        else:
            flow = gradient_flow(start, data)
            steps, converged = flow.a, flow.converged
        ones = np.ones_like(steps)
        path = LinearSSM(a=steps, b=ones, c=ones)
        error = generalisation_error(
            LinearSSM(a=steps[-1], b=ones[-1], c=ones[-1]), self.teacher, horizon=study.horizon
        )
        return Trained(case=case, path=Students(ssm=path), error=float(error), converged=converged)
