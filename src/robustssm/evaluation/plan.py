"""What an evaluation will run, in which pieces, and at most how long it takes."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.suites import Suite, suite
from robustssm.attacks.threat import Threat
from robustssm.core.errors import OutOfTime
from robustssm.core.types import LogitsFn
from robustssm.ops import divergence

CHUNK = 256
"""Examples that go through all attacks together, if nobody says otherwise."""

PART = 96
"""Most examples of a chunk that one thread attacks at a time, on a CPU."""

PARTS = 4
"""Parts come in a multiple of this, so that threads have equal shares."""

CACHE_BYTES = 3 * 2**21
"""What a pass on a CPU may keep for its backward pass, to stay near the caches of its core."""

ROWS = (16, 128)
"""Fewest and most rows per pass on a CPU; every call has a price too.

Measured on two cores: for a small convolutional net, pieces of 128 rows took 0.7 of the time of
2,943 rows in one pass, with gradients, on one thread; parts of an attack on two threads 0.7 to 0.8
of the time of pieces on two threads.
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attack of an evaluation, or a suite with its stages."""

    label: str
    attack: Attack
    stages: tuple[Attack, ...]
    """The attack itself, or the suite's stages, each given what those before left right."""

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
        attack = suite(value) if isinstance(value, str) else value
        if isinstance(attack, Suite):
            attack = attack.resolve(threat, num_classes=num_classes, shape=shape, masked=masked)
        stages = attack.stages if isinstance(attack, Ensemble) else (attack,)
        jobs.append(Job(label=name or attack.label, attack=attack, stages=stages))
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


def chunks(n: int, size: int) -> Iterator[tuple[int, Int[Tensor, " rows"]]]:
    """The examples in pieces of `size`, numbered: the same whoever works on them."""
    yield from enumerate(torch.arange(n).split(size))


def parts(n: int) -> list[slice]:
    """Examples 0, ..., n - 1 in equal parts for threads: the same for any number of threads."""
    count = min(n, PARTS * math.ceil(n / (PARTS * PART)))
    ends = [n * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def rows_that_fit(access: Access, x: Float[Tensor, "batch ..."]) -> int:
    """Rows per pass, from the memory that one row keeps for its backward pass.

    Counted on two examples and one, so that it depends on model, shape and device alone: the same
    evaluation is cut into the same pieces.

    Args:
        access: The model.
        x: Examples, at least one.
    """
    two = torch.cat((x[:1], x[:1]))
    try:
        per_row = max(1, _kept(access, two) - _kept(access, x[:1]))
    except OutOfTime:
        raise
    except Exception:  # a kernel without a backward pass, in its own words: the preflight tells
        per_row = 1
    if x.is_cuda:
        most = torch.cuda.get_device_properties(x.device).total_memory // 4
        return max(1, min(2**16, most // per_row))
    return min(max(CACHE_BYTES // per_row, ROWS[0]), ROWS[1])


def reentrant(model: LogitsFn) -> bool:
    """Whether several threads may certainly call a model at once.

    True of modules on a CPU that are made of torch's and our own layers, without hooks: none of
    them changes anything in eval mode. Of other people's code nobody knows.
    """
    if not isinstance(model, nn.Module) or torch.is_autocast_enabled("cpu"):
        return False
    if any(p.device.type != "cpu" for p in model.parameters()):
        return False
    ours = ("torch.nn.modules.", f"{__name__.partition('.')[0]}.")
    return all(
        type(module).__module__.startswith(ours)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in model.modules()
    )


def _kept(access: Access, x: Tensor) -> int:
    """Bytes saved for a backward pass, every storage once."""
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        points = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            kept = access(points)
    del kept
    return sum(storages.values())


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
