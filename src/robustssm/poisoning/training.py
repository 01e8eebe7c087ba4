"""Training many small students at once: the loop, its stop rule, and what it keeps of each run.

All runs of a batch take their steps together; a run that is done leaves the batch. What is kept is
the state at steps spaced evenly in their logarithm, and where the training loss first came below
each of some levels, so that two students can be compared at the same training loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import Field

from robustssm.core.config import settings
from robustssm.models.linear_ssm import LinearSSM

Progress = Callable[[str, float], None]
"""Is told the part of the study and the share of it that is done, which never falls."""

DIVERGED = 1e30
"""A training loss beyond this ends a run."""


@settings
class Stop:
    """When training ends: some steps after the training loss first reached a level.

    Source: slutzky2024implicit, the published code.
    """

    level: Annotated[float, Field(gt=0)] = 0.01
    """Training loss (mean squared error) to reach."""
    extra_steps: Annotated[int, Field(ge=0)] = 1500
    """Steps after that."""
    max_steps: Annotated[int, Field(ge=1)] = 60_000
    """Steps at which a run that has not reached the level is given up."""


class Learner(ABC):
    """Students that step together."""

    @abstractmethod
    def losses(self) -> Float64[np.ndarray, " runs"]:
        """Training loss of every run where it stands; prepares the gradient of the next step."""

    @abstractmethod
    def update(self) -> None:
        """One step of every run, with the gradient at the last `losses`."""

    @abstractmethod
    def states(self) -> Float64[np.ndarray, "runs packed"]:
        """A copy of where every run stands: a, b, c, and the two slopes of a network if any."""

    @abstractmethod
    def keep(self, rows: Bool[np.ndarray, " runs"]) -> None:
        """Leaves only these runs in the batch."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Students:
    """Trained or half-trained students: an SSM, and behind it a network without biases or none.

    Such a network on one input is two straight lines: g(z) = up z for z > 0 and -down z for z < 0.
    """

    ssm: LinearSSM
    slopes: Float64[np.ndarray, "*runs 2"] | None = None
    """g(1) and g(-1)."""

    def predict(self, x: Float64[np.ndarray, "... n length"]) -> Float64[np.ndarray, "... n"]:
        """The last output of the SSM, through the network if there is one."""
        z = self.ssm.last_output(x)
        return z if self.slopes is None else self.slope(z) * z

    def slope(self, z: Float64[np.ndarray, "*runs n"]) -> Float64[np.ndarray, "*runs n"]:
        """g'(z); 1 without a network, 0 at the kink."""
        if self.slopes is None:
            return np.ones_like(z)
        up, down = self.slopes[..., :1], self.slopes[..., 1:]
        return np.where(z > 0, up, np.where(z < 0, -down, 0.0))


@dataclass(eq=False, kw_only=True)
class Trace:
    """One run of training."""

    d_state: int
    steps: list[float] = field(default_factory=list)
    train_mse: list[float] = field(default_factory=list)
    packed: list[Float64[np.ndarray, " packed"]] = field(default_factory=list)
    matched: dict[float, Float64[np.ndarray, " packed"]] = field(default_factory=dict)
    """Level of the training loss to the state where it first came below."""
    reached_at: float | None = None
    """Step at which the stop rule's level was reached."""
    diverged: bool = False

    @property
    def students(self) -> Students:
        """The kept states, in order of their steps."""
        return unpack(np.array(self.packed), self.d_state)

    @property
    def final(self) -> Students:
        """The state at the end."""
        return unpack(self.packed[-1], self.d_state)

    def at_level(self, level: float) -> Students | None:
        """The state where the training loss first came below `level`; None if it never did."""
        return unpack(self.matched[level], self.d_state) if level in self.matched else None

    def note(self, step: int, loss: float, state: Float64[np.ndarray, " packed"]) -> None:
        """Keeps a state, once per step."""
        if not self.steps or self.steps[-1] < step:
            self.steps.append(step)
            self.train_mse.append(float(loss))
            self.packed.append(state.copy())


def unpack(packed: Float64[np.ndarray, "*runs packed"], d_state: int) -> Students:
    """The inverse of `Learner.states`."""
    a, b, c = (packed[..., i * d_state : (i + 1) * d_state] for i in range(3))
    slopes = packed[..., 3 * d_state :]
    return Students(ssm=LinearSSM(a=a, b=b, c=c), slopes=slopes if slopes.shape[-1] else None)


def train(
    learner: Learner,
    *,
    runs: int,
    d_state: int,
    stop: Stop,
    levels: Sequence[float] = (),
    points: int = 60,
    progress: Callable[[float], None] | None = None,
) -> list[Trace]:
    """Trains every run until its stop rule, and returns what was kept of each.

    Args:
        learner: The students, not yet stepped.
        runs: How many they are.
        d_state: Their states.
        stop: When a run ends.
        levels: Training losses at whose first crossing the state is kept.
        points: How many states to keep besides, spaced evenly in the logarithm of the step.
        progress: Told the share of the work that is done.
    """
    loop = _Loop(learner, runs, d_state, stop, sorted({*levels, stop.level}, reverse=True), points)
    with np.errstate(over="ignore", invalid="ignore"):  # `look` ends the runs that diverge
        while loop.active.size:
            loop.look()
            if progress is not None and loop.step % 500 == 0:
                progress(loop.share)
            if loop.active.size:
                learner.update()
                loop.step += 1
    if progress is not None:
        progress(1.0)
    return loop.traces


class _Loop:
    """Where the batch stands: which runs are active, and what each waits for."""

    def __init__(
        self,
        learner: Learner,
        runs: int,
        d_state: int,
        stop: Stop,
        levels: list[float],
        points: int,
    ):
        self.learner, self.stop, self.levels = learner, stop, levels
        self.traces = [Trace(d_state=d_state) for _ in range(runs)]
        self.active = np.arange(runs)
        self.step = 0
        longest = stop.max_steps + stop.extra_steps
        self.schedule = [0, *np.unique(np.geomspace(1, longest, points).round().astype(int))]
        self.pending = np.full(runs, levels[0])
        self.due = np.full(runs, stop.max_steps)

    @property
    def share(self) -> float:
        done = 1 - self.active.size / len(self.traces)
        return max(done, self.step / (self.stop.max_steps + self.stop.extra_steps))

    def look(self) -> None:
        """Notes what there is to note at this step, and sends away the runs that are done."""
        loss = self.learner.losses()
        lower, sound = loss <= self.pending, loss < DIVERGED
        scheduled = self.schedule and self.step >= self.schedule[0]
        if not (scheduled or lower.any() or self.step >= self.due.min() or not sound.all()):
            return
        states = self.learner.states()
        if scheduled:
            self.schedule.pop(0)
            self._note(np.ones_like(lower), loss, states)
        if lower.any():
            self._cross(loss, states)
        done = (self.step >= self.due) | ~sound
        if done.any():
            self._note(done, loss, states)
            for run in self.active[~sound]:
                self.traces[run].diverged = True
            self.learner.keep(~done)
            self.active, self.pending, self.due = (
                values[~done] for values in (self.active, self.pending, self.due)
            )

    def _note(
        self,
        rows: Bool[np.ndarray, " runs"],
        loss: Float64[np.ndarray, " runs"],
        states: Float64[np.ndarray, "runs packed"],
    ) -> None:
        for row in np.flatnonzero(rows):
            self.traces[self.active[row]].note(self.step, loss[row], states[row])

    def _cross(
        self, loss: Float64[np.ndarray, " runs"], states: Float64[np.ndarray, "runs packed"]
    ) -> None:
        for row in np.flatnonzero(loss <= self.pending):
            trace = self.traces[self.active[row]]
            for level in self.levels:
                if loss[row] <= level and level not in trace.matched:
                    trace.matched[level] = states[row].copy()
            if trace.reached_at is None and loss[row] <= self.stop.level:
                trace.reached_at = self.step
                self.due[row] = self.step + self.stop.extra_steps
            left = [level for level in self.levels if level not in trace.matched]
            self.pending[row] = left[0] if left else -np.inf
