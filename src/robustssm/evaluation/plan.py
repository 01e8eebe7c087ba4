"""What an evaluation will run, in which pieces, and at most how long it takes."""

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.suites import Suite, suite
from robustssm.attacks.threat import Threat
from robustssm.core.config import to_dict
from robustssm.core.errors import OutOfTime
from robustssm.ops import divergence
from robustssm.records.files import JSON

CHUNK = 256
"""Examples that go through all attacks together, if nobody says otherwise."""

PART = 96
"""Most examples of a chunk that one thread attacks at a time, on a CPU."""

PARTS = 4
"""Parts come in a multiple of this, so that threads have equal shares."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attack of an evaluation, or a suite with its stages."""

    label: str
    attack: Attack
    stages: tuple[Attack, ...]
    """The attack itself, or the suite's stages, each given what those before left right."""
    settings: Mapping[str, JSON]
    """Of the attack or suite as it was asked for."""

    @property
    def suite(self) -> Ensemble | None:
        """The suite, if it is one."""
        return self.attack if isinstance(self.attack, Ensemble) else None


def plan(
    attacks: Attack | str | Sequence[Attack | str] | Mapping[str, Attack | str],
    threat: Threat,
    *,
    num_classes: int,
    shape: tuple[int, ...],
    masked: bool,
) -> tuple[Job, ...]:
    """Resolves attacks and suites for one problem.

    Args:
        attacks: Attacks and suites, by name or as settings; a mapping gives labels of your own.
        threat: What they may do.
        num_classes: Of the model.
        shape: Of one example.
        masked: Whether a mask restricts what may be touched.

    Raises:
        ValueError: If two have the same label, or one is called "clean" or "robust".
    """
    if isinstance(attacks, str | Attack):
        attacks = (attacks,)
    own = list(attacks.keys()) if isinstance(attacks, Mapping) else [None] * len(attacks)
    values = list(attacks.values()) if isinstance(attacks, Mapping) else list(attacks)
    jobs = []
    for name, value in zip(own, values, strict=True):
        attack = asked = suite(value) if isinstance(value, str) else value
        if isinstance(attack, Suite):
            attack = attack.resolve(threat, num_classes=num_classes, shape=shape, masked=masked)
        stages = attack.stages if isinstance(attack, Ensemble) else (attack,)
        jobs.append(
            Job(
                label=name or attack.label, attack=attack, stages=stages, settings=_on_record(asked)
            )
        )
    labels = [job.label for job in jobs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"Every attack must have a label of its own; got '{label}' twice. "
                "Give a mapping from labels of your own to attacks."
            )
        if label in ("clean", "robust"):
            raise ValueError(
                f"No attack must be labelled '{label}', which names a row of every table. "
                "Give it a label of its own."
            )
    return tuple(jobs)


def _on_record(attack: Attack | Suite) -> Mapping[str, JSON]:
    """Its settings as JSON; what is none, as a model that an attack holds, by its type."""
    text = json.dumps(to_dict(attack), default=lambda value: type(value).__name__)
    settings: Mapping[str, JSON] = json.loads(text)
    return settings


def chunks(n: int, size: int) -> Iterator[tuple[int, Int[Tensor, " rows"]]]:
    """The examples in pieces of `size`, numbered: the same whoever works on them."""
    yield from enumerate(torch.arange(n).split(size))


def parts(n: int) -> list[slice]:
    """Examples 0, ..., n - 1 in equal parts for threads: the same for any number of threads."""
    count = min(n, PARTS * math.ceil(n / (PARTS * PART)))
    ends = [n * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds per example of a pass, measured."""

    forward: float
    backward: float

    def of(self, attack: Attack, num_classes: int) -> float:
        """Seconds per example of an attack, at most; 0 if it does not say how many passes."""
        passes = attack.passes(num_classes)
        if passes is None:
            return 0.0
        return passes.forward * self.forward + passes.backward * self.backward


def measure(access: Access, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]) -> Cost:
    """Times a forward pass and one with gradient on a batch.

    Args:
        access: The model.
        x: Some examples, at least one.
        y: Their classes.
    """

    def loss(logits: Tensor, rows: slice) -> Tensor:
        return divergence.cross_entropy(logits, y[rows])

    access.logits(x)  # warm
    began = time.perf_counter()
    _wait(access.logits(x))
    forward = time.perf_counter() - began
    try:
        began = time.perf_counter()
        _wait(access.climb(x, loss).gradient)
        both = time.perf_counter() - began
    except OutOfTime:
        raise
    except Exception:  # no gradient, as the preflight has said: only black-box attacks will run
        both = forward
    return Cost(forward=forward / len(x), backward=max(0.0, both - forward) / len(x))


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
