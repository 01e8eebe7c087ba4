"""Candidates for the same work: first compared, then timed in turn.

A `Comparison` holds candidates, ours first. Nothing is timed before every output and gradient
agrees with what is expected of it; a gap beyond the stated tolerance is an error. Then the
candidates are called round robin, each round beginning with another one, so that a change in the
machine's speed meets all of them; medians are compared.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustssm.core.placement import cpu_threads

Results = Mapping[str, Tensor]
"""Outputs and gradients by name."""

SHORTEST = 0.01
"""Seconds that one sample lasts at least: quicker candidates are called several times for one."""


class Mismatch(AssertionError):
    """Two candidates do not compute the same."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to do the work."""

    name: str
    run: Callable[[], object]
    """What is timed."""
    results: Callable[[], Results] | None = None
    """Outputs and gradients to compare; None: what `run` returns."""
    expected: Callable[[], Results] | None = None
    """What they must be; None: the results of the comparison's last candidate."""
    tolerance: float | None = None
    """None: the comparison's."""
    loose: Mapping[str, float] = field(default_factory=dict)
    """Larger tolerances, by the end of a quantity's name: for what float32 code gets less well."""
    warm: Callable[[], object] | None = None
    """What is called once before timing; None: `run`."""
    count: int = 1
    """Pieces of work in one call: times are divided by it."""
    set_threads: Callable[[int], object] | None = None
    """Told the number of threads, where the work is done in another process."""
    saved_bytes: Callable[[], int] | None = None
    """Memory kept for the backward pass, where that is a question."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a comparison is timed at one number of threads."""

    rounds: int
    """At most so many."""
    seconds: float
    """No new round begins after so long, once `least` are done."""
    least: int = 3


@dataclass(frozen=True)
class Times:
    """Seconds per piece of work, one for each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates for the same work, ours first; the last one is what the others must equal."""

    what: str
    """The work in a few words."""
    shape: str
    candidates: Sequence[Candidate]
    tolerance: float = 1e-5
    """Largest gap allowed, relative to the largest entry of what is expected."""

    def verify(self) -> dict[str, float]:
        """Compares outputs and gradients; the worst gap of every candidate that was compared.

        Raises:
            Mismatch: If a gap is beyond tolerance, or something is missing or not finite.
        """
        worst: dict[str, float] = {}
        last = self.candidates[-1]
        common = None
        for candidate in self.candidates:
            if candidate.expected is not None:
                expected = candidate.expected()
            elif candidate is last:
                continue
            else:
                common = _results(last) if common is None else common
                expected = common
            tolerance = self.tolerance if candidate.tolerance is None else candidate.tolerance
            gaps = compare(
                _results(candidate),
                expected,
                tolerance,
                name=candidate.name,
                loose=candidate.loose,
            )
            worst[candidate.name] = max(gaps.values())
        return worst

    def measure(self, *, threads: int, effort: Effort) -> dict[str, Times]:
        """Seconds of every candidate, timed in turn with so many threads."""
        with cpu_threads(threads):
            for candidate in self.candidates:
                if candidate.set_threads is not None:
                    candidate.set_threads(threads)
            repeats = {c.name: _repeats(c) for c in self.candidates}
            samples: dict[str, list[float]] = {c.name: [] for c in self.candidates}
            gc.collect()
            began = time.perf_counter()
            for turn in range(effort.rounds):
                if turn >= effort.least and time.perf_counter() - began > effort.seconds:
                    break
                for place in range(len(self.candidates)):
                    candidate = self.candidates[(place + turn) % len(self.candidates)]
                    calls = repeats[candidate.name]
                    seconds = _time(candidate.run, calls)
                    samples[candidate.name].append(seconds / (calls * candidate.count))
        return {name: Times(tuple(values)) for name, values in samples.items()}


def compare(
    found: Results,
    expected: Results,
    tolerance: float,
    *,
    name: str,
    loose: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Gap of each quantity, max|found - expected| / max|expected|.

    Raises:
        Mismatch: If one is beyond tolerance or not finite, or if the quantities are not the same.
    """
    if set(found) != set(expected):
        odd = ", ".join(sorted(set(found) ^ set(expected)))
        raise Mismatch(
            f"'{name}' must have the quantities that are expected of it; not in both: {odd}."
        )
    gaps = {key: gap(found[key], expected[key]) for key in found}
    allowed = {key: _allowed(key, tolerance, loose or {}) for key in gaps}
    bad = [key for key, value in gaps.items() if not value <= allowed[key]]
    if bad:
        told = ", ".join(
            f"{key} is {gaps[key]:.1e} away (allowed {allowed[key]:.0e})" for key in bad
        )
        raise Mismatch(
            f"'{name}' must agree with what is expected of it, relative to the largest entry; "
            f"{told}. Nothing was timed."
        )
    return gaps


def gap(found: Tensor, expected: Tensor) -> float:
    """max|found - expected| / max|expected|; infinite where shapes differ or a value is NaN."""
    if found.shape != expected.shape:
        return float("inf")
    a, b = (_wide(t.detach()) for t in (found, expected))
    largest = float(b.abs().max()) if b.numel() else 0.0
    distance = float((a - b).abs().max()) if b.numel() else 0.0
    value = distance / largest if largest else distance
    return value if value == value else float("inf")


def gradients(
    output: Tensor, inputs: Mapping[str, Tensor], cotangent: Tensor | None = None
) -> dict[str, Tensor]:
    """The output and the gradients of sum(cotangent * output), named "d" + input, as results."""
    found = torch.autograd.grad(output, list(inputs.values()), cotangent)
    named = {f"d {name}": g for name, g in zip(inputs, found, strict=True)}
    return {"output": output.detach(), **named}


def _results(candidate: Candidate) -> Results:
    found = (candidate.results or candidate.run)()
    assert isinstance(found, Mapping), f"'{candidate.name}' has no results to compare"
    return found


def _allowed(key: str, tolerance: float, loose: Mapping[str, float]) -> float:
    return max([tolerance, *(value for end, value in loose.items() if key.endswith(end))])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _repeats(candidate: Candidate) -> int:
    """Calls for one sample, after a first call that does not count."""
    if candidate.warm is not None:
        candidate.warm()
        return 1
    if _time(candidate.run, 1) > 10 * SHORTEST:
        return 1
    return max(1, round(SHORTEST / max(_time(candidate.run, 1), 1e-7)))


def _time(run: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - began
