"""Gradient flow of the theorem's setting under a defence that changes how the student learns."""

import dataclasses
import warnings

import numpy as np
from scipy.integrate import LSODA

from robustssm.core.errors import violation
from robustssm.models.linear_ssm import LinearSSM
from robustssm.poisoning.defences import Defence, double_log
from robustssm.poisoning.dynamics import compressed
from robustssm.poisoning.sequences import TrainingSet


def defended_flow(
    start: LinearSSM,
    data: TrainingSet,
    defence: Defence,
    *,
    t_end: float = 1e16,
    fitted: float = 1e-24,
    rtol: float = 1e-10,
) -> LinearSSM:
    """Where gradient flow on A ends under a parametrisation or an l1 penalty, b and c fixed.

    The l1 penalty is sum sqrt(a^2 + 1e-16), as a flow needs a slope everywhere. Clipping the norm
    of a gradient changes only the clock of a flow, not its path.

    Raises:
        ValueError: If the defence has something else, which flow has no use for.
    """
    plain = dataclasses.replace(defence, name="none", parametrisation="free", l1=0.0)
    if plain != Defence() or defence.parametrisation == "clamped":
        raise ValueError(
            violation("A defended flow", "be of the exponential parametrisation or l1", defence)
        )
    factor, target, rest = compressed(data)
    gains, exponential = start.gains, defence.parametrisation == "exponential"
    lags = np.arange(1.0, factor.shape[1])

    def residual(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = np.vander(a, factor.shape[1], increasing=True).T
        return table, factor @ (table @ gains) - target

    def velocity(_: float, position: np.ndarray) -> np.ndarray:
        a = np.exp(-np.exp(position)) if exponential else position
        table, off = residual(a)
        slope = gains * ((lags * (2 * off @ factor)[1:]) @ table[:-1])
        slope = slope + defence.l1 * a / np.sqrt(a**2 + 1e-16)
        return -slope * a * np.log(a) if exponential else -slope

    begin = double_log(start.a) if exponential else start.a
    solver = LSODA(velocity, 0.0, begin, t_end, rtol=rtol, atol=rtol * 1e-6)
    while solver.status == "running":
        with warnings.catch_warnings():  # a solver that gives up shows in the training loss
            warnings.simplefilter("ignore", UserWarning)
            solver.step()
        a = np.exp(-np.exp(solver.y)) if exponential else np.asarray(solver.y)
        _, off = residual(a)
        if not defence.l1 and float(off @ off) + rest <= fitted:
            break
    a = np.exp(-np.exp(solver.y)) if exponential else np.asarray(solver.y).copy()
    return LinearSSM(a=a, b=start.b, c=start.c)
