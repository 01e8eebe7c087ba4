"""The mean square of a time-invariant system's output error, exactly, for any mean and covariance.

Legend: g group, o output and i input of a group, t and s time, r column of a factor, b batch, n
and m states. T is the two-sided response and H the matrix of `ops.response`. For a perturbation e
of the input with mean m and covariance V, E ||H e||^2 = ||H m||^2 + tr(H V H^T). All in float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import Inapplicable, violation
from robustssm.core.rng import Noise
from robustssm.ops.gains import l2_gain_bound
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.response import convolve, in_float64, two_sided_response, window_sums

_ROWS = 64
"""Sequences that are convolved together, to bound memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance of a perturbation: V = diag(variance) + sum over r of f[r] f[r]^T.

    A normal vector with these moments is mean + sqrt(variance) * xi + sum over r of eta[r] f[r].

    Args:
        mean: (length, channels), channels as the recurrence reads them.
        variance: (length, channels), at least 0: the part that is independent in time and channel.
        factor: (rank, length, channels), the part that is correlated; rank may be 0.
    """

    # Sizes are checked below, where the message can say which do not fit.
    mean: Float[Tensor, "_ _"]
    variance: Float[Tensor, "_ _"]
    factor: Float[Tensor, "_ _ _"]

    def __post_init__(self) -> None:
        if not self.mean.shape == self.variance.shape == self.factor.shape[1:]:
            shapes = [tuple(M.shape) for M in (self.mean, self.variance, self.factor)]
            raise ValueError(violation("`Moments`", "have parts of one (length, channels)", shapes))
        if not (self.variance >= 0).all():
            raise ValueError(
                violation("`Moments(variance=...)`", "be at least 0", self.variance.min().item())
            )

    @classmethod
    def iid(
        cls,
        length: int,
        *,
        mean: Float[Tensor, " channels"],
        variance: Float[Tensor, " channels"],
    ) -> "Moments":
        """The same mean and variance at each of `length` steps, independent of one another."""
        mean, variance = (v.double().expand(length, -1) for v in (mean, variance))
        return cls(mean=mean, variance=variance, factor=mean.new_zeros(0, *mean.shape))

    @classmethod
    def of(cls, samples: Float[Tensor, "batch length channels"]) -> "Moments":
        """Those of the samples themselves, each as likely as the others (so divided by batch)."""
        samples = samples.double()
        mean = samples.mean(0)
        factor = (samples - mean) / len(samples) ** 0.5
        return cls(mean=mean, variance=torch.zeros_like(mean), factor=factor)

    @property
    def second(self) -> Float[Tensor, "length channels"]:
        """E e^2 at every step and channel."""
        return self.mean.square() + self.variance + self.factor.square().sum(0)

    def draw(self, count: int, noise: Noise) -> Float[Tensor, "batch length channels"]:
        """Normal perturbations with these moments."""
        rank = len(self.factor)
        xi = noise.fork("xi").normal(count, *self.mean.shape, dtype=torch.float64)
        e = self.mean + self.variance.sqrt() * xi.to(self.mean.device)
        if rank:
            eta = noise.fork("eta").normal(count, rank, dtype=torch.float64).to(self.mean.device)
            e = e + torch.tensordot(eta, self.factor, 1)
        return e


class MeanSquare(NamedTuple):
    """E ||H e||^2 per group, summed over time and outputs, in its two parts."""

    mean: Float[Tensor, " groups"]
    """||H m||^2."""
    spread: Float[Tensor, " groups"]
    """tr(H V H^T)."""

    @property
    def exact(self) -> Float[Tensor, " groups"]:
        """Their sum."""
        return self.mean + self.spread


def mean_square(recurrence: Recurrence, moments: Moments) -> MeanSquare:
    """E ||y' - y||^2 of every group for a perturbation of the system's input, D included.

    Independent parts cost O(length), a mean and each row of the factor one convolution.

    Raises:
        Inapplicable: If the system varies with time or example.
    """
    T = two_sided_response(recurrence, len(moments.mean))
    mean = _energy(T, moments.mean[None])
    spread = einsum(_columns(T), _by_group(moments.variance, len(T)), "g i s, g i s -> g")
    for rows in moments.factor.split(_ROWS) if len(moments.factor) else ():
        spread = spread + _energy(T, rows)
    return MeanSquare(mean, spread)


def iid_mean_square(
    recurrence: Recurrence,
    length: int,
    *,
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
) -> MeanSquare:
    """`mean_square` in O(length), for the same mean and variance at every step.

    sum over t of (S[t] mean)^2 + sum over l of (length - |l|) T[l]^2 variance, S the step response.

    Raises:
        Inapplicable: If the system varies with time or example.
    """
    T = two_sided_response(recurrence, length)
    mean, variance = (rearrange(v.double(), "(g i) -> g i", g=len(T)) for v in (mean, variance))
    settled = einsum(window_sums(T), mean, "g o i t, g i -> g o t").square().sum((1, 2))
    lag = torch.arange(1 - length, length, device=T.device)
    times = (length - lag.abs()).double()
    return MeanSquare(settled, einsum(T.square(), times, variance, "g o i l, l, g i -> g"))


class MeanSquareBounds(NamedTuple):
    """What needs less than the whole distribution; lower <= exact <= minkowski <= l1."""

    lower: Float[Tensor, " groups"]
    """||H m||^2 + lambda_min(V) ||H||_F^2: needs the mean and the least variance."""
    minkowski: Float[Tensor, " groups"]
    """sum over t and o of (sum over i of sqrt(M_i) sum over lags of |T|)^2, M_i = max E e_i^2."""
    l1: Float[Tensor, " groups"]
    """length * sum over o of (sum over i of sqrt(M_i) ||T||_1)^2."""
    spectral: Float[Tensor, " groups"]
    """E ||e||^2 * gain^2 with the l2 gain or a bound on it."""


def mean_square_bounds(
    recurrence: Recurrence, moments: Moments, *, gain: Float[Tensor, " groups"] | None = None
) -> MeanSquareBounds:
    """Bounds on `mean_square` that hold for every perturbation, however it is correlated.

    Args:
        recurrence: A time-invariant system.
        moments: Of the perturbation.
        gain: The l2 gain of each group over this length, if it is known already; else
            `l2_gain_bound` is taken, which is cheaper and never smaller.

    Raises:
        Inapplicable: If the system varies with time or example.
    """
    length = len(moments.mean)
    T = two_sided_response(recurrence, length)
    root = _by_group(moments.second, len(T)).amax(-1).sqrt()
    reach = einsum(window_sums(T.abs()), root, "g o i t, g i -> g o t")
    total = einsum(T.abs(), root, "g o i l, g i -> g o")
    if gain is None:
        gain = l2_gain_bound(recurrence, length)
    energy = _by_group(moments.second, len(T)).sum((1, 2))
    least = _least_variance(moments, len(T))
    return MeanSquareBounds(
        lower=_energy(T, moments.mean[None]) + least * _columns(T).sum((1, 2)),
        minkowski=reach.square().sum((1, 2)),
        l1=length * total.square().sum(1),
        spectral=energy * gain.double().square(),
    )


class OutputMoments(NamedTuple):
    """Mean and variance of every output error at every step."""

    mean: Float[Tensor, "batch length groups outputs"]
    variance: Float[Tensor, "batch length groups outputs"]

    @property
    def mean_square(self) -> Float[Tensor, "batch groups"]:
        """E ||y' - y||^2 of every group."""
        return (self.mean.square() + self.variance).sum((1, 3))


def output_moments(
    recurrence: Recurrence,
    mean: Float[Tensor, "length channels"],
    variance: Float[Tensor, "length channels"],
) -> OutputMoments:
    """Moments of the output error step by step, for errors independent in time and channel.

    The reference of `mean_square`, and more general: A, B and C may vary with time and example.
    The state carries its mean, its covariance P = E h h^* and its pseudo-covariance Q = E h h^T:
    with v = C h complex, Var(Re v) = (E |v|^2 + Re E v^2) / 2, and Q is what P does not know of it.
    Two directions share but the present token, as what else drives them is independent.

    Args:
        recurrence: Any system; axes of batch and time as in `run`.
        mean: Of the perturbation of what drives it.
        variance: The same, at least 0.
    """
    mean, variance = mean.double(), variance.double()
    ways = list(in_float64(recurrence).directions)
    if len(ways) > 2:
        raise Inapplicable(f"A recurrence runs in at most two directions here; got {len(ways)}.")
    total: OutputMoments | None = None
    directs: list[Tensor] = []
    for k, way in enumerate(ways):
        turned = (mean, variance) if k == 0 else (mean.flip(0), variance.flip(0))
        m, v, direct = _one_way(way, *turned)
        if k:
            m, v, direct = m.flip(1), v.flip(1), direct.flip(1)
        directs.append(direct)
        total = OutputMoments(m, v) if total is None else OutputMoments(total[0] + m, total[1] + v)
    assert total is not None
    if len(directs) == 1:
        return total
    spread = rearrange(variance, "t (g i) -> t g i", g=recurrence.groups)
    shared = einsum(directs[0] * directs[1], spread, "b t g o i, t g i -> b t g o")
    return OutputMoments(total.mean, total.variance + 2 * shared)


def _one_way(way: Recurrence, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the outputs, and the first tap read(C B) + D, each by time."""
    batch = max(len(M) for M in (way.A, way.B, way.C))
    state, factor = way.A.shape[3], 2.0 if way.conjugate_pairs else 1.0
    h = torch.zeros(batch, way.groups, state, dtype=torch.complex128, device=way.D.device)
    P = Q = h.new_zeros(batch, way.groups, state, state)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for t, (m, v) in enumerate(zip(mean, variance, strict=True)):
        m, v = (rearrange(x, "(g i) -> g i", g=way.groups) for x in (m, v))
        A, B, C = (
            M[:, t if M.shape[1] > 1 else 0].to(torch.complex128) for M in (way.A, way.B, way.C)
        )
        A = torch.diag_embed(A) if way.diagonal else A
        BV = B * v[:, None]
        h = einsum(A, h, "b g n m, b g m -> b g n") + einsum(B, m.to(B), "b g n i, g i -> b g n")
        P = A @ P @ A.mH + BV @ B.mH
        Q = A @ Q @ A.mT + BV @ B.mT
        read = einsum(C, h, "b g o n, b g n -> b g o")
        size = torch.einsum("bgon,bgnm,bgom->bgo", C, P, C.conj()).real
        pseudo = torch.einsum("bgon,bgnm,bgom->bgo", C, Q, C).real
        now = factor * (C @ B).real
        skip = way.D.expand(batch, -1, -1, -1)
        y = factor * read.real + einsum(skip, m, "b g o i, g i -> b g o")
        spread = factor**2 * (size + pseudo) / 2
        spread = spread + einsum(skip * (skip + 2 * now), v, "b g o i, g i -> b g o")
        found.append((y, spread, (now + skip).expand_as(skip)))
    mean_y, variance_y, direct = (torch.stack(each, 1) for each in zip(*found, strict=True))
    return mean_y, variance_y, direct


def _by_group(v: Tensor, groups: int) -> Float[Tensor, "groups inputs length"]:
    return rearrange(v.double(), "t (g i) -> g i t", g=groups)


def _columns(T: Tensor) -> Float[Tensor, "groups inputs length"]:
    """Squared norms of the columns of H."""
    return window_sums(T.flip(-1).square()).sum(1)


def _energy(T: Tensor, u: Float[Tensor, "rows length channels"]) -> Float[Tensor, " groups"]:
    """The sum over rows of ||H u||^2."""
    y = rearrange(convolve(T, u), "b t (g o) -> g (b t o)", g=len(T))
    return y.square().sum(-1)


def _least_variance(moments: Moments, groups: int) -> Float[Tensor, " groups"]:
    """A lower bound on the least eigenvalue of V in each group, exact if one of its parts is 0."""
    least = _by_group(moments.variance, groups).amin((1, 2))
    size = moments.mean.numel() // groups
    if len(moments.factor) < size:  # V has directions that the factor does not reach
        return least
    F = rearrange(moments.factor.double(), "r t (g i) -> g r (t i)", g=groups)
    return least + torch.linalg.svdvals(F)[:, -1].square()
