"""Accuracy over one setting of an attack: over eps, over steps, over restarts."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.errors import violation
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.ops import divergence
from robustssm.records import Curve


def over_eps(
    attack: Attack,
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    values: Sequence[float],
    indices: Int[Tensor, " batch"] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Curve:
    """Accuracy under one attack as the threat's radius grows.

    Every value draws from the same streams, so a start uniform in the ball grows with it; settings
    that are fractions of eps stay those fractions.

    Args:
        attack: The attack.
        model: In eval mode.
        x: Clean inputs (batch, ...).
        y: Their classes (batch,).
        threat: All but eps.
        streams: Randomness.
        batch_size: Examples at a time.
        values: The radii, ascending, in the units of the input.
        indices: Identity of each example, for its stream; 0, 1, ... if None.
        mask: What may be touched, as attacks take it.
    """
    threats = [dataclasses.replace(threat, eps=float(value)) for value in _ascending(values, "eps")]
    flags = [
        survivors(
            attack,
            model,
            x,
            y,
            threat=t,
            streams=streams,
            batch_size=batch_size,
            path=("curve", "eps"),
            indices=indices,
            mask=mask,
        )
        for t in threats
    ]
    return _curve("eps", attack, values, flags)


def over_steps(
    attack: Attack,
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    values: Sequence[int],
    indices: Int[Tensor, " batch"] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Curve:
    """Accuracy as the attack's `steps` grow; arguments as `over_eps`.

    An attack that keeps the best of its iterates can only gain, as its first steps are the same;
    one that keeps the last shows whether it still climbs.
    """
    return _over_field(
        "steps", attack, model, x, y, threat, streams, batch_size, values, indices, mask
    )


def over_restarts(
    attack: Attack,
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    values: Sequence[int],
    indices: Int[Tensor, " batch"] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Curve:
    """Accuracy as the attack's `restarts` grow; arguments as `over_eps`.

    Runs are nested: the first of five restarts is the only one of one. Where the curve rises
    nevertheless, the model is random.
    """
    return _over_field(
        "restarts", attack, model, x, y, threat, streams, batch_size, values, indices, mask
    )


def survivors(
    attack: Attack,
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    path: Sequence[str | int],
    indices: Int[Tensor, " batch"] | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Bool[Tensor, " batch"]:
    """Who is right under the attack, by a pass of its own, and was right before; on the CPU.

    Args:
        attack: The attack.
        model: In eval mode.
        x: Clean inputs (batch, ...).
        y: Their classes (batch,).
        threat: The threat.
        streams: Randomness.
        batch_size: Examples at a time.
        path: Names of the streams; one per example follows.
        indices: Identity of each example; 0, 1, ... if None.
        mask: What may be touched, as attacks take it.
    """
    access = Access.of(model)
    held = torch.zeros(len(x), dtype=torch.bool)
    known = torch.arange(len(x)) if indices is None else indices.cpu()
    for rows in torch.arange(len(x)).split(batch_size):
        some, labels = x[rows.to(x.device)], y[rows.to(y.device)]
        noise = streams.examples(*path, indices=known[rows])
        free = None if mask is None else mask[rows.to(mask.device)]
        found = attack(access, some, labels, threat=threat, noise=noise, mask=free)
        wrong = divergence.wrong(access.logits(found), labels)
        wrong |= divergence.wrong(access.logits(some), labels)
        held[rows] = ~wrong.cpu()
    return held


def _over_field(
    name: str,
    attack: Attack,
    model: LogitsFn,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    values: Sequence[int],
    indices: Tensor | None,
    mask: Tensor | None,
) -> Curve:
    if name not in {field.name for field in dataclasses.fields(attack)}:  # type: ignore[arg-type]
        raise ValueError(
            violation(
                f"An attack whose {name} vary",
                f"have a setting `{name}`",
                type(attack).__name__,
                "Vary eps, or take another attack.",
            )
        )
    flags = [
        survivors(
            dataclasses.replace(attack, **{name: value}),  # type: ignore[type-var]
            model,
            x,
            y,
            threat=threat,
            streams=streams,
            batch_size=batch_size,
            path=("curve", name),
            indices=indices,
            mask=mask,
        )
        for value in _ascending(values, name)
    ]
    return _curve(name, attack, values, flags)


def _ascending(values: Sequence[float], axis: str) -> list:
    if not values or list(values) != sorted(set(values)):
        raise ValueError(
            violation(f"The values of a curve over {axis}", "be one or more, ascending", values)
        )
    return list(values)


def _curve(axis: str, attack: Attack, values: Sequence[float], flags: list[Tensor]) -> Curve:
    return Curve(
        axis=axis,
        attack=attack.label,
        values=tuple(float(value) for value in values),
        survived=tuple(tuple(row.tolist()) for row in flags),
    )
