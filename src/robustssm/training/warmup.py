"""How the radius of the training threat rises to its full size."""

import dataclasses
from typing import Annotated

from pydantic import AfterValidator, Field

from robustssm.attacks.threat import Threat
from robustssm.core.errors import violation


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    begin, end = span
    if not 0 <= begin < end < 1:
        raise ValueError(
            violation(
                "`eps_warmup`",
                "be a share of training in [0, 1), or two of them in order",
                str(list(span)),
                "[0.3, 0.7] trains on clean inputs for 30 %, then raises eps until 70 %.",
            )
        )
    return span


EpsWarmup = (
    Annotated[float, Field(ge=0, lt=1)] | Annotated[tuple[float, float], AfterValidator(_ordered)]
)
"""Share of training over which eps rises linearly from 0; or when it begins to rise, and ends.

A task that is learned suddenly, after a plateau, is learned while eps is still 0 or not at all.
"""


def ramped(threat: Threat, warmup: EpsWarmup, progress: float) -> Threat:
    """The threat with the eps in force.

    Args:
        threat: The threat at full strength.
        warmup: When eps rises.
        progress: How far training is, in [0, 1].
    """
    begin, end = warmup if isinstance(warmup, tuple) else (0.0, warmup)
    if progress >= end:
        return threat
    factor = max(0.0, progress - begin) / (end - begin)
    return dataclasses.replace(threat, eps=threat.eps * factor)
