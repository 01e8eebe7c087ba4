"""Gradient flow on the diagonal of A, and what theory says of it (slutzky2024implicit).

Proposition 1: with delta_i = y_i - phi(x_i),

    da_j/dt = c_j b_j sum_{l=0}^{L-2} gamma_l a_j^l,
    gamma_l = 2 (l+1) / n sum_i delta_i x_{i,L-l-1}

gamma_0 pushes every entry alike and is 0 on ordinary sequences: entries then grow faster the larger
they are, one wins, and the student stays of low rank. Special sequences switch gamma_0 on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.integrate import LSODA
from scipy.optimize import root_scalar

from robustssm.core.errors import Inapplicable, violation
from robustssm.models.linear_ssm import LinearSSM, by_lag, powers
from robustssm.poisoning.sequences import TrainingSet


def gamma_coefficients(
    x: Float64[np.ndarray, "... n length"],
    residual: Float64[np.ndarray, "*runs n"],
    slope: Float64[np.ndarray, "*runs n"] | None = None,
) -> Float64[np.ndarray, "*runs orders"]:
    """gamma_0, ..., gamma_{L-2} of Proposition 1.

    Args:
        x: Training sequences, (n, length) or one such set per run.
        residual: y_i minus the prediction.
        slope: g'(phi(x_i)) of the network g behind the SSM; None where there is no network.

    Returns:
        (*runs, length - 1).
    """
    weight = residual if slope is None else residual * slope
    orders = np.arange(1, x.shape[-1])
    lagged = by_lag(x)[..., 1:]
    return 2 / x.shape[-2] * orders * (weight[..., None, :] @ lagged)[..., 0, :]


def velocity(
    system: LinearSSM, gamma: Float64[np.ndarray, "*runs orders"]
) -> Float64[np.ndarray, "*runs d_state"]:
    """da/dt by Proposition 1."""
    terms = gamma[..., None, :] @ powers(system.a, gamma.shape[-1])
    return system.gains * terms[..., 0, :]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """A path of gradient flow."""

    times: Float64[np.ndarray, " times"]
    a: Float64[np.ndarray, "times d_state"]
    train_mse: Float64[np.ndarray, " times"]
    gamma: Float64[np.ndarray, "times orders"]
    converged: bool
    """Whether the training loss came below the level at which the flow stops."""


def gradient_flow(
    start: LinearSSM,
    data: TrainingSet,
    *,
    t_end: float = 1e16,
    fitted: float = 1e-24,
    rtol: float = 1e-10,
    points: int = 80,
) -> Flow:
    """Follows da/dt = -d loss / da with b and c fixed, until the training loss is `fitted`.

    The loss is the mean squared error. A stiff solver with adaptive order and the exact Jacobian,
    in float64: the path waits for up to 1e12 units of time and then fits within one.

    Args:
        start: One SSM, where the flow begins.
        data: Training set.
        t_end: Time at which it stops at the latest.
        fitted: Training loss at which it stops.
        rtol: Relative tolerance of a step; the absolute one is 1e-6 of it, as entries that start
            near 0 decide the outcome.
        points: How many points of the path to keep, evenly spaced in the solver's own steps, which
            are dense where something happens.

    Numerics: with rtol=1e-10 the end of the ordinary half agrees with `closed_form_limit`
        to 1e-6 (tests/poisoning/test_dynamics.py).
    """
    gram = _Gram.of(data)
    system = _Field(b=start.b, c=start.c, gram=gram)
    solver = LSODA(
        system.velocity, 0.0, start.a, t_end, rtol=rtol, atol=rtol * 1e-6, jac=system.jacobian
    )
    times, states, losses = [0.0], [start.a], [system.loss(start.a)]
    while losses[-1] > fitted and solver.status == "running":
        solver.step()
        times.append(float(solver.t))
        states.append(np.asarray(solver.y).copy())
        losses.append(system.loss(solver.y))
    kept = np.unique(np.linspace(0, len(times) - 1, points).round().astype(int))
    path = np.array(states)[kept]
    run = LinearSSM(
        a=path, b=np.broadcast_to(start.b, path.shape), c=np.broadcast_to(start.c, path.shape)
    )
    return Flow(
        times=np.array(times)[kept],
        a=path,
        train_mse=np.array(losses)[kept],
        gamma=gamma_coefficients(data.x, data.y - run.last_output(data.x)),
        converged=losses[-1] <= fitted,
    )


def closed_form_limit(
    a0: Float64[np.ndarray, " d_state"], *, length: int
) -> Float64[np.ndarray, " d_state"]:
    """Where gradient flow ends on the one ordinary sequence of Theorem 1, with b = c = 1.

    All entries obey da_j/dt = g(t) a_j^{L-2}, so v_j = a_j^{-(L-3)} decreases at one common rate
    until sum_j a_j^{L-1} = 1; the limit is found by one root of one unknown. For L = 3 they grow
    in proportion instead.

    Args:
        a0: Initial diagonal, positive.
        length: Length L of the sequence, at least 3.

    Raises:
        Inapplicable: If an entry is not positive, or the loss starts beyond its minimum.

    Source: ours, from Proposition 1 of slutzky2024implicit. Oracle: `gradient_flow`.
    """
    _check_start(a0, length)
    if length == 3:
        return a0 / np.sqrt((a0**2).sum())
    lead = a0.max()
    # Offsets v_j - min v in units of the leader's v, so that a gap of 1e-12 is not rounded away.
    offset = np.expm1(-(length - 3) * np.log1p((a0 - lead) / lead))
    scale = lead ** -(length - 3.0)
    exponent = (length - 1) / (length - 3)

    def excess(log_w: float) -> float:
        return float(((scale * offset + np.exp(log_w)) ** -exponent).sum()) - 1

    log_w = _root(excess, 0.0, float(np.log(scale)))
    return (scale * offset + np.exp(log_w)) ** (-1 / (length - 3))


def time_to_fit(a0: Float64[np.ndarray, " d_state"], *, length: int) -> float:
    """Time that gradient flow needs on the one ordinary sequence of Theorem 1, b = c = 1.

    1 / (2 (L-1) (L-3) a_max^{L-3}), from the growth of the largest entry alone while the residual
    is still 1; log(1 / a_max) / (2 (L-1)) for L = 3.
    """
    _check_start(a0, length)
    lead = float(a0.max())
    if length == 3:
        return float(np.log(1 / lead)) / (2 * (length - 1))
    return 1 / (2 * (length - 1) * (length - 3) * lead ** (length - 3))


@dataclass(frozen=True, eq=False)
class _Gram:
    """The training loss as a quadratic in the impulse response: mean (h - w)^T G (h - w) + rest."""

    factor: Float64[np.ndarray, "rows lags"]
    target: Float64[np.ndarray, " rows"]
    rest: float

    @classmethod
    def of(cls, data: TrainingSet) -> "_Gram":
        factor, target, rest = compressed(data)
        return cls(factor, target, rest)


@dataclass(frozen=True, eq=False)
class _Field:
    """The vector field of the flow, its Jacobian, and the loss."""

    b: Float64[np.ndarray, " d_state"]
    c: Float64[np.ndarray, " d_state"]
    gram: _Gram

    def _residual(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = np.vander(a, self.gram.factor.shape[1], increasing=True).T
        return table, self.gram.factor @ (table @ (self.b * self.c)) - self.gram.target

    def loss(self, a: np.ndarray) -> float:
        _, residual = self._residual(a)
        return float(residual @ residual) + self.gram.rest

    def velocity(self, _: float, a: np.ndarray) -> np.ndarray:
        table, residual = self._residual(a)
        slope = 2 * (self.gram.factor.T @ residual)
        lags = np.arange(1, len(slope))
        return -self.b * self.c * ((lags * slope[1:]) @ table[:-1])

    def jacobian(self, _: float, a: np.ndarray) -> np.ndarray:
        table, residual = self._residual(a)
        slope = 2 * (self.gram.factor.T @ residual)
        lags = np.arange(1, len(slope))
        response = (lags[:, None] * table[:-1]) * (self.b * self.c)  # dh_m / da_j, m >= 1
        moved = self.gram.factor[:, 1:] @ response
        own = (lags[1:] * lags[:-1] * slope[2:]) @ table[:-2]
        return -2 * moved.T @ moved - np.diag(self.b * self.c * own)


def compressed(
    data: TrainingSet,
) -> tuple[Float64[np.ndarray, "lags lags"], Float64[np.ndarray, " lags"], float]:
    """A training set as `length` rows with the same loss: F, t, r with loss(h) = |F h - t|^2 + r.

    Any number of sequences so costs the same, and sets of different sizes can share an array.
    """
    design, length = by_lag(data.x), data.length
    orthogonal, triangle = np.linalg.qr(design)
    target = orthogonal.T @ data.y
    rest = data.y - orthogonal @ target
    factor, goal = np.zeros((length, length)), np.zeros(length)
    rows = len(triangle)
    factor[:rows], goal[:rows] = triangle, target
    n = len(design)
    return factor / np.sqrt(n), goal / np.sqrt(n), float(rest @ rest) / n


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root in [low, high], to the last digits."""
    return float(root_scalar(function, bracket=(low, high), xtol=1e-15, rtol=1e-14).root)


def _check_start(a0: Float64[np.ndarray, " d_state"], length: int) -> None:
    if length < 3:
        raise ValueError(
            violation("The length of training sequences (kappa)", "be at least 3", length)
        )
    if a0.min() <= 0 or (a0 ** (length - 1)).sum() >= 1:
        raise Inapplicable(
            "The closed form of the ordinary half must start from positive entries with "
            f"sum a^{length - 1} < 1; got entries from {a0.min():.3g} to {a0.max():.3g}. "
            "Follow such a start with `gradient_flow`."
        )
