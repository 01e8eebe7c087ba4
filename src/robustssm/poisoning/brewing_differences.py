"""Arms beside each other: differences in pairs, seed by seed, with an interval over seeds."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np

from robustssm.records.brewing import ArmRecord, PairedDifference

MEASURES = ("accuracy", "target_accuracy", "test_loss", "train_loss")


def differences(arms: Sequence[ArmRecord], of: str = "poisoned") -> tuple[PairedDifference, ...]:
    """One arm minus every other one, seed by seed, in every measure.

    Args:
        arms: All arms of all seeds.
        of: The arm that is compared.
    """
    by_seed = {(arm.arm, arm.seed): arm for arm in arms}
    seeds = [arm.seed for arm in arms if arm.arm == of]
    controls = list(dict.fromkeys(arm.arm for arm in arms if arm.arm != of))
    return tuple(
        _difference([(by_seed[of, s], by_seed[control, s]) for s in seeds], measure)
        for control in controls
        for measure in MEASURES
        if seeds
    )


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of a mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    half = _student_quantile(level, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def _difference(pairs: Sequence[tuple[ArmRecord, ArmRecord]], measure: str) -> PairedDifference:
    values = [getattr(arm, measure) - getattr(control, measure) for arm, control in pairs]
    interval = student_interval(values)
    flags = {"accuracy": "correct", "target_accuracy": "correct_targets"}.get(measure)
    both = (
        ""
        if flags is None
        else [
            a + b
            for arm, control in pairs
            for a, b in zip(getattr(arm, flags), getattr(control, flags), strict=True)
        ]
    )
    return PairedDifference(
        arm=pairs[0][0].arm,
        control=pairs[0][1].arm,
        measure=measure,
        differences=tuple(values),
        matched_seeds=sum(arm.matched and control.matched for arm, control in pairs),
        mean=mean(values),
        low=None if interval is None else interval[0],
        high=None if interval is None else interval[1],
        lost=sum(pair == "01" for pair in both),
        gained=sum(pair == "10" for pair in both),
    )


def _student_quantile(level: float, df: int) -> float:
    """The t with P(|T| <= t) = level: T = sqrt(df) tan(angle), its density cos(angle)^(df - 1).

    Oracle: scipy.stats.t (tests/poisoning/test_victim.py), relative error below 1e-6.
    """
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (df - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(float(np.interp(level, mass / mass[-1], angle)))
