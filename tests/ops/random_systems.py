"""Random time-invariant systems of every family that a layer may give, in float64."""

import torch

from robustssm.core.rng import Noise
from robustssm.ops.recurrence import Recurrence

FAMILIES = ("dense", "pairs", "complex", "averages", "mimo", "dense_mimo", "both_ways", "mimo_ways")
"""S4; S4D and S5 with conjugate pairs; DSS; Mega's averages; S5; dense; two directions."""


def system(family: str, noise: Noise, *, radius: float = 0.95, groups: int = 3) -> Recurrence:
    """A system of that family whose spectral radius is at most, in "averages" near, `radius`."""
    if family in ("both_ways", "mimo_ways"):
        one, two = ("averages", "pairs") if family == "both_ways" else ("mimo", "mimo")
        forward = system(one, noise.fork("ahead"), radius=radius, groups=groups)
        backward = system(two, noise.fork("behind"), radius=radius, groups=groups)
        return Recurrence(
            A=forward.A,
            B=forward.B,
            C=forward.C,
            D=forward.D,
            conjugate_pairs=forward.conjugate_pairs,
            backward=backward,
        )
    many = "mimo" in family
    if family == "mimo":
        groups = 1
    state, inputs, outputs = 4, 3 if many else 1, 2 if many else 1
    real = family in ("dense", "averages", "dense_mimo")

    def draw(*shape: int) -> torch.Tensor:
        values = noise.normal(*shape, 2, dtype=torch.float64)
        return values[..., 0] if real else torch.view_as_complex(values)

    if family.startswith("dense"):
        A = draw(1, 1, groups, state, state)
        A = A * (radius / torch.linalg.eigvals(A).abs().amax(-1))[..., None, None]
    elif family == "averages":
        A = noise.uniform(1, 1, groups, state, low=0.2, high=1.0, dtype=torch.float64) * radius
    else:
        size = noise.uniform(1, 1, groups, state, low=0.2, high=1.0, dtype=torch.float64) * radius
        A = torch.polar(size, 3 * noise.normal(1, 1, groups, state, dtype=torch.float64))
    return Recurrence(
        A=A,
        B=draw(1, 1, groups, state, inputs),
        C=draw(1, 1, groups, outputs, state),
        D=noise.normal(groups, outputs, inputs, dtype=torch.float64),
        conjugate_pairs=family in ("pairs", "mimo"),
    )


def channels(recurrence: Recurrence) -> int:
    """How many channels drive it."""
    return recurrence.groups * recurrence.D.shape[-1]
