"""Theorem 4.1.1 of qi2024exploring as printed, beside what is true, and where it fails.

The theorem bounds the output error y' - y of an SSM whose input is perturbed by e, with E e = mu
and E e[k]^2 <= M, from eigenvalues and the product C B alone:

    mu^2 c1 sum_j prod_(i<j) |lambda_min| (C B)^2 <= E ||y' - y||^2
        <= c2 M sum_j prod_(i<j) |lambda_max| (C B)^2,    j = 1, ..., L,

c1 and c2 the extreme eigenvalues of E^T E, E the lower-triangular matrix of ones. Neither side
holds (docs/error-theory.md); `counterexample_upper` and `counterexample_lower` are systems that
break them.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.ops.discretize import zero_order_hold
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.response import convolve, in_float64, two_sided_response
from robustssm.ops.second_moments import Moments, mean_square

_TOGETHER = 1 << 24
"""Numbers in the sequences that are drawn together."""


class PaperBounds(NamedTuple):
    """The printed bounds of every group and what they should bound."""

    lower: Float[Tensor, " groups"]
    """As printed, with mu the mean over time of E e[k]."""
    upper: Float[Tensor, " groups"]
    """As printed, with M the largest E e[k]^2."""
    exact: Float[Tensor, " groups"]
    """E ||y' - y||^2 of the system."""
    exact_without_skip: Float[Tensor, " groups"]
    """The same with D = 0: the system that the theorem speaks of, which leaves D u out."""
    estimate: Float[Tensor, " groups"]
    """Monte-Carlo estimate of `exact` from normal perturbations of the same moments."""
    standard_error: Float[Tensor, " groups"]
    """Of `estimate`."""

    def violations(self, *, tolerance: float = 1e-9) -> dict[str, Tensor]:
        """Where "lower" exceeds, or "upper" falls below, the error without skip; by group."""
        exact = self.exact_without_skip
        slack = tolerance * exact
        return {"lower": self.lower > exact + slack, "upper": self.upper < exact - slack}


@torch.no_grad()
def paper_bounds(
    recurrence: Recurrence, moments: Moments, *, noise: Noise, samples: int = 2000
) -> PaperBounds:
    """Both printed bounds beside the exact value and a Monte-Carlo estimate.

    The theorem takes the mean to be one number; of a mean that varies in time its average is
    taken. |lambda| are moduli of the eigenvalues of A, and C B is the first tap without D.

    Args:
        recurrence: A time-invariant causal system of one input and one output per group.
        moments: Of the perturbation of its input; their length is that of the sum.
        noise: Source of the Monte-Carlo draws.
        samples: How many, at least 2.

    Raises:
        Inapplicable: If the theorem does not speak of the system: several inputs or outputs in a
            group (S5), two directions (Mega), parameters that vary with time or example (Mamba).

    Source: qi2024exploring, theorem 4.1.1 and its proof.
    """
    _require_covered(recurrence)
    system = in_float64(recurrence)
    length = len(moments.mean)
    moduli = _moduli(system)
    first = two_sided_response(replace(system, D=torch.zeros_like(system.D)), 1)[:, 0, 0, 0]
    c1, c2 = printed_constants(length)
    mu, M = moments.mean.mean(0), moments.second.amax(0)
    estimate, standard_error = monte_carlo(system, moments, noise=noise, samples=samples)
    return PaperBounds(
        lower=mu.square() * c1 * _geometric(moduli.amin(-1), length) * first.square(),
        upper=c2 * M * _geometric(moduli.amax(-1), length) * first.square(),
        exact=mean_square(system, moments).exact,
        exact_without_skip=mean_square(
            replace(system, D=torch.zeros_like(system.D)), moments
        ).exact,
        estimate=estimate,
        standard_error=standard_error,
    )


def printed_constants(length: int) -> tuple[float, float]:
    """c1 and c2: the least and the largest eigenvalue of E^T E, E the triangle of ones.

    They are 1 / (4 sin^2 of (2 k - 1) pi / (4 length + 2)) for k = length and 1: c1 falls towards
    1/4 from above, and c2 is no constant, it grows like (2 length + 1)^2 / pi^2.
    """
    angle = math.pi / (4 * length + 2)
    return 0.25 / math.sin((2 * length - 1) * angle) ** 2, 0.25 / math.sin(angle) ** 2


@torch.no_grad()
def monte_carlo(
    recurrence: Recurrence, moments: Moments, *, noise: Noise, samples: int
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """The mean of ||H e||^2 per group over normal draws of e, and its standard error."""
    T = two_sided_response(recurrence, len(moments.mean))
    together = max(1, min(samples, _TOGETHER // moments.mean.numel()))
    squares: list[Tensor] = []
    for k, start in enumerate(range(0, samples, together)):
        e = moments.draw(min(together, samples - start), noise.fork("monte carlo", k))
        y = convolve(T, e).unflatten(-1, T.shape[:2])
        squares.append(y.square().sum((1, 3)))
    found = torch.cat(squares)
    return found.mean(0), found.std(0) / samples**0.5


def counterexample_upper() -> tuple[Recurrence, Moments]:
    """A system whose printed upper bound is 0 and whose error is 1409, over 32 steps with e = 1.

    Modes 0.9 and 0.1 that cancel in the first tap: K[t] = 0.9^t - 0.1^t, so C B = 0. No constant in
    place of c2 repairs this.
    """
    return _system([0.9, 0.1], [1.0, -1.0], complex_modes=False), _constant(32)


def counterexample_lower() -> tuple[Recurrence, Moments]:
    """A system whose printed lower bound is 5.00 and whose error is 1.24, over 256 steps, e = 1.

    16 modes on a circle of radius 0.95 give K = 1, -1, then zeros, and after 16 steps the same
    times 0.95^16: each pair cancels what a constant error adds up to. As the radius goes to 1, more
    than 1 / (2 c1) modes break the bound for any c1.
    """
    size, radius = 16, 0.95
    turns = 2j * math.pi / size
    taps = {0: 1.0, 1: -1.0 / radius}  # one period, before the decay
    modes = [radius * torch.e ** (turns * n) for n in range(size)]
    residues = [sum(K * torch.e ** (-turns * n * t) for t, K in taps.items()) for n in range(size)]
    return _system(modes, [r / size for r in residues], complex_modes=True), _constant(256)


class SmallSteps(NamedTuple):
    """The input matrix B-bar of zero-order hold as dt goes to 0, a = -1/2 and B = 1."""

    dt: Float[Tensor, " steps"]
    exact: Float[Tensor, " steps"]
    """(e^(dt a) - 1) / a, which goes to 0 like dt."""
    stable: Float[Tensor, " steps"]
    """What the library computes in float32."""
    naive: Float[Tensor, " steps"]
    """The quotient as it is written, in float32."""


def removable_singularity(dt: Float[Tensor, " steps"]) -> SmallSteps:
    """B-bar = (e^(dt a) - 1) / a B goes to dt B, not to infinity, as the paper says it does.

    Args:
        dt: Step sizes, positive.
    """
    a = torch.tensor(-0.5)

    def held(dtype: torch.dtype) -> Tensor:
        one = torch.ones(1, 1, 1, dtype=dtype)
        return zero_order_hold(a.to(dtype)[None, None], one, dt.to(dtype)[:, None])[1][:, 0, 0]

    naive = (torch.exp(dt.float() * a) - 1) / a
    return SmallSteps(dt.double(), held(torch.float64), held(torch.float32), naive)


def _require_covered(recurrence: Recurrence) -> None:
    single = recurrence.D.shape[1:] == (1, 1)
    fixed = recurrence.time_invariant and recurrence.input_independent
    if not (single and fixed and recurrence.backward is None):
        raise Inapplicable(
            "Theorem 4.1.1 needs a causal system of one input and one output per group that is "
            f"the same at every step; got D {tuple(recurrence.D.shape)}, "
            f"A {tuple(recurrence.A.shape)} and {len(recurrence.directions)} direction(s). "
            "`mean_square` has the exact error."
        )


def _moduli(system: Recurrence) -> Float[Tensor, "groups state"]:
    A = system.A[0, 0].expand(system.groups, *system.A.shape[3:])
    return (A if system.diagonal else torch.linalg.eigvals(A)).abs()


def _geometric(ratio: Float[Tensor, " groups"], length: int) -> Float[Tensor, " groups"]:
    """1 + r + ... + r^(length - 1)."""
    powers = torch.arange(length, device=ratio.device)
    return (ratio[:, None] ** powers).sum(-1)


def _system(
    modes: list[float] | list[complex],
    residues: list[float] | list[complex],
    *,
    complex_modes: bool,
) -> Recurrence:
    """K[t] = Re sum of residue * mode^t."""
    dtype = torch.complex128 if complex_modes else torch.float64
    A, C = (torch.tensor(v, dtype=dtype)[None, None, None] for v in (modes, residues))
    D = torch.zeros(1, 1, 1, dtype=torch.float64)
    return Recurrence(A=A, B=torch.ones_like(A)[..., None], C=C[..., None, :], D=D)


def _constant(length: int) -> Moments:
    """Errors of exactly 1 at every step."""
    one = torch.ones(1, dtype=torch.float64)
    return Moments.iid(length, mean=one, variance=torch.zeros_like(one))
