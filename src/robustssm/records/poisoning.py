"""What a poisoning study found: every run, its path, summaries over seeds, contrasts, sweeps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Path:
    """One run over training; all tuples go over `steps`. Numbers have 6 significant digits."""

    steps: tuple[float, ...]
    """Steps of descent, or units of time for gradient flow."""
    train_mse: tuple[float, ...]
    error: tuple[float, ...]
    """Generalisation error at the headline horizon."""
    moduli: tuple[tuple[float, ...], ...]
    """|a_j|, each state in the place where it started."""
    effective_rank: tuple[float, ...]
    contribution_rank: tuple[float, ...]
    gamma: tuple[tuple[float, ...], ...]
    """gamma_0, gamma_1, ... of Proposition 1."""


@dataclass(frozen=True, kw_only=True)
class PoisonRun:
    """One student from one seed, trained under one condition."""

    condition: str
    """"ordinary", "special", "placebo", ..."""
    seed: int
    train_mse: float
    error: Mapping[str, float]
    """Generalisation error by horizon, "20", "40" and twice the training length."""
    effective_rank: float
    contribution_rank: float
    max_modulus: float
    """max_j |a_j|; beyond 1 the student explodes."""
    steps: float
    """Steps of descent, or units of time, until it ended."""
    converged: bool
    """Whether it reached the level of its stop rule."""
    diverged: bool = False
    matched: Mapping[str, float | None] = field(default_factory=dict)
    """Training loss to the error where the loss first came below it; None if it never did."""
    hankel: tuple[float, ...] = ()
    """Hankel singular values over the headline horizon, the largest ten."""
    response: tuple[float, ...] = ()
    """Impulse response from lag 0; of a student in a network, times the slope g(1)."""
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One condition over its seeds."""

    condition: str
    seeds: int
    median: float
    """Of the error at the headline horizon, over all seeds, converged or not."""
    mean: float
    low: float
    high: float
    """Ends of the interval of the median, as the study's `interval` says."""
    lowest: float
    highest: float
    convergence_rate: float
    converged_median: float | None
    """Median over converged runs alone."""
    train_mse: float
    """Mean."""
    effective_rank: float
    """Median."""
    contribution_rank: float
    """Median."""
    max_modulus: float
    """Largest."""
    steps: float
    """Median."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The median error of one condition over that of another, read at the same place."""

    above: str
    below: str
    place: str
    """"stop" where each arm ended, or the training loss at which both were read."""
    above_median: float | None
    below_median: float | None
    ratio: float | None
    """None where one of the arms has no run that got there."""
    low: float | None
    high: float | None
    above_seeds: int
    """Runs that got there."""
    below_seeds: int


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One condition at one value of what a sweep varies."""

    value: float | None
    """None where the setting is switched off."""
    label: str
    condition: str
    errors: tuple[float, ...]
    """Error at the headline horizon, per seed."""
    median: float
    mean: float
    low: float
    high: float
    worst_train_mse: float
    convergence_rate: float
    effective_rank: float
    """Median."""
    max_modulus: float
    """Largest."""


@dataclass(frozen=True, kw_only=True)
class PoisonResult:
    """What one study of poisoning found."""

    study: str
    settings: Mapping[str, Any]
    length: int
    """Training length, the kappa of the paper."""
    horizon: int
    """Lags over which the headline error is taken."""
    interval: str
    """How intervals were made, in words."""
    runs: tuple[PoisonRun, ...] = ()
    summaries: tuple[Summary, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    sweep: tuple[SweepRow, ...] = ()
    teacher_response: tuple[float, ...] = ()
    excited_lags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Condition to the lags that its training set reaches."""
    remarks: tuple[str, ...] = ()
    """What a reader must know before believing the numbers; whole sentences."""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def summary(self, condition: str) -> Summary:
        """The summary of one condition.

        Raises:
            KeyError: If there is none.
        """
        for each in self.summaries:
            if each.condition == condition:
                return each
        raise KeyError(f"{self.study} has no condition '{condition}'.")

    def of(self, condition: str) -> tuple[PoisonRun, ...]:
        """The runs of one condition, in the order of their seeds."""
        return tuple(run for run in self.runs if run.condition == condition)

    def contrast(self, above: str, below: str, place: str = "stop") -> Contrast:
        """One comparison.

        Raises:
            KeyError: If it was not made.
        """
        for each in self.contrasts:
            if (each.above, each.below, each.place) == (above, below, place):
                return each
        raise KeyError(f"{self.study} does not compare '{above}' with '{below}' at '{place}'.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; numbers that are not finite become text: "inf", "-inf", "nan"."""
        return encoded(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PoisonResult":
        """The inverse of `to_dict`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        plain = dict(decoded(data, skip=("settings", "provenance")))
        plain["runs"] = tuple(
            PoisonRun(**{**run, "path": Path(**run["path"]) if run["path"] else None})
            for run in plain["runs"]
        )
        for name, kind in (("summaries", Summary), ("contrasts", Contrast), ("sweep", SweepRow)):
            plain[name] = tuple(kind(**each) for each in plain[name])
        return cls(**plain)


_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encoded(value: Any) -> Any:
    """JSON-able values; numbers that are not finite become text: "inf", "-inf", "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if is_dataclass(value):
        return {each.name: encoded(getattr(value, each.name)) for each in fields(value)}
    return value


def decoded(value: Any, skip: tuple[str, ...] = ()) -> Any:
    """Lists to tuples, words to numbers; what is under the keys `skip` stays as it is."""
    if isinstance(value, Mapping):
        return {key: item if key in skip else decoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(decoded(item) for item in value)
    return _WORDS.get(value, value) if isinstance(value, str) else value
