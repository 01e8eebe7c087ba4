"""How far features moved when an input did: the paper's two metrics, and some without a scale.

Features are (batch, length, channels), "clean" of the input as it was and "shifted" of the input as
it became; one number per example unless said otherwise, in float64. Features that did not move give
exactly 0, also where they are zero; a NaN in an example gives NaN for it.
"""

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "batch length channels"]

_ENTRIES = 1 << 16  # of a part: 512 KiB of float64


def mean_square(clean: Features, shifted: Features) -> Float[Tensor, " batch"]:
    """|shifted - clean|^2 / length: mean over positions, sum over channels.

    Scales with the square of the features. Source: qi2024exploring, figures 3 and 4.
    """
    return (shifted.double() - clean.double()).square().sum((1, 2)) / clean.shape[1]


def softmax_kl(clean: Features, shifted: Features) -> Float[Tensor, " batch"]:
    """KL(S(clean) || S(shifted)), summed over channels; S is the softmax over positions.

    Grows about with the square of the features' scale while that is small. One position gives 0.

    Numerics: between logarithms of softmaxes, so that a position whose probability underflows
    counts as 0; rounding that would leave a negative sum is cut.
    Source: qi2024exploring, figures 3 and 4. Oracle: scipy.special (tests/ops/test_shift.py).
    """
    log_p, log_q = clean.double().log_softmax(1), shifted.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum((1, 2)).clamp(min=0)


def over_norm(distance: Float[Tensor, " batch"], clean: Features) -> Float[Tensor, " batch"]:
    """A distance over |clean|, the Frobenius norm over positions and channels; 0 / 0 is 0.

    Source: qi2024exploring, figures 3 and 4, which calls this the relative change.
    """
    return _ratio(distance, _norm(clean.double()))


def relative(clean: Features, shifted: Features) -> Float[Tensor, " batch"]:
    """|shifted - clean| / |clean|, Frobenius norms; 0 / 0 is 0."""
    return over_norm(_norm(shifted.double() - clean.double()), clean)


def cosine_distance(clean: Features, shifted: Features) -> Float[Tensor, " batch"]:
    """1 - cos of the angle between the two as vectors; 1 where just one of them is zero.

    Numerics: as (|g - f|^2 - (|g| - |f|)^2) / (2 |f| |g|), which stays exact for small angles,
    where 1 - cos loses all digits.
    """
    f, g = clean.double(), shifted.double()
    return _cosine_distance(_norm(g - f), _norm(f), _norm(g))


def by_position(clean: Features, shifted: Features) -> Float[Tensor, "batch length"]:
    """|shifted - clean| / |clean| at every position, norms over channels; 0 / 0 is 0."""
    f, g = clean.double(), shifted.double()
    return _ratio((g - f).norm(dim=2), f.norm(dim=2))


class Moments(NamedTuple):
    """Second moments about the means over examples and positions, of features and their shift."""

    tokens: int
    """Examples times positions."""
    mean: Float[Tensor, " channels"]
    """Of the clean features."""
    mean_shift: Float[Tensor, " channels"]
    clean: Float[Tensor, "channels channels"]
    """X^T X of the centred clean features X, (tokens, channels)."""
    cross: Float[Tensor, "channels channels"]
    """X^T E with the centred shift E."""
    shift: Float[Tensor, "channels channels"]
    """E^T E."""


def moments(clean: Features, shifted: Features) -> Moments:
    """The moments of some examples; `merged` puts those of more together.

    Numerics: products of centred features in the precision that the features came in, at least
    float32; sums of parts in float64.
    """
    precise = torch.promote_types(clean.dtype, torch.float32)
    f = clean.to(precise).flatten(0, 1)
    e = shifted.to(precise).flatten(0, 1) - f
    mean, mean_shift = (each.mean(0, dtype=torch.float64) for each in (f, e))
    f, e = f - mean.to(precise), e - mean_shift.to(precise)
    products = (f.T @ f, f.T @ e, e.T @ e)
    return Moments(len(f), mean, mean_shift, *(each.double() for each in products))


def merged(one: Moments, other: Moments) -> Moments:
    """The moments of the examples of both."""
    tokens = one.tokens + other.tokens
    apart, apart_shift = other.mean - one.mean, other.mean_shift - one.mean_shift
    weight, share = one.tokens * other.tokens / tokens, other.tokens / tokens
    return Moments(
        tokens,
        one.mean + share * apart,
        one.mean_shift + share * apart_shift,
        one.clean + other.clean + weight * torch.outer(apart, apart),
        one.cross + other.cross + weight * torch.outer(apart, apart_shift),
        one.shift + other.shift + weight * torch.outer(apart_shift, apart_shift),
    )


def alignment_distance(found: Moments) -> Float[Tensor, ""]:
    """1 - linear centred kernel alignment of the clean and the shifted features.

    With X and Y centred, one row per example and position: 1 - |Y^T X|^2 / (|X^T X| |Y^T Y|).
    Rotations of the channels, one scale for all and shifts by a constant leave it as it is. It is 0
    for features that did not move, and 1 where only one of the two is constant.

    Numerics: written in the shift E = Y - X, whose first-order terms cancel on paper and not in
    rounding.
    Source: kornblith2019similarity, section 3. Oracle: the Gram matrices (tests/ops/test_shift.py).
    """
    size = _norm(found.clean[None])
    unit = torch.where(size == 0, 1.0, size)
    g, p, q = found.clean / unit, found.cross / unit, found.shift / unit
    r = p + p.T + q
    gp, gq, pp, rr = (g * p).sum(), (g * q).sum(), p.square().sum(), r.square().sum()
    moved = (g + r).square().sum()
    lost = 2 * gq + rr - 2 * pp - 4 * gp.square() - 4 * gp * pp - pp.square()
    alignment = (g + p).square().sum() / moved.sqrt()
    distance = (lost / moved / (1 + alignment)).clamp(0, 1)
    constant = (size[0] == 0) | (moved == 0)
    still = (found.shift.diagonal() == 0).all()
    return torch.where(constant, torch.where(still, 0.0, 1.0), distance).double()


class Shift(NamedTuple):
    """Sums over examples of how far their features moved: those of more can be added."""

    sums: Float[Tensor, "4"]
    """Of `mean_square` and `softmax_kl` over the norm, `cosine_distance` and `relative`."""
    examples: int
    moments: Moments

    def plus(self, other: "Shift") -> "Shift":
        """That of the examples of both."""
        moments = merged(self.moments, other.moments)
        return Shift(self.sums + other.sums, self.examples + other.examples, moments)

    def values(self) -> Float[Tensor, "5"]:
        """The four means over examples, and the `alignment_distance` of all examples together."""
        return torch.cat([self.sums / self.examples, alignment_distance(self.moments)[None]])


def measured(clean: Features, shifted: Features) -> Shift:
    """All of it for some examples; on a CPU as many at once as caches hold, which is faster."""
    rows = max(1, _ENTRIES // max(1, clean[0].numel()))
    if clean.device.type == "cpu" and len(clean) > rows:
        parts = zip(clean.split(rows), shifted.split(rows), strict=True)
        return reduce(Shift.plus, (measured(*part) for part in parts))
    f, g = clean.double(), shifted.double()
    gone, norm, norm_shifted = _norm(g - f), _norm(f), _norm(g)
    each = (
        _ratio(gone.square() / f.shape[1], norm),
        _ratio(softmax_kl(f, g), norm),
        _cosine_distance(gone, norm, norm_shifted),
        _ratio(gone, norm),
    )
    sums = torch.stack([values.sum() for values in each])
    return Shift(sums, len(f), moments(clean, shifted))


def _cosine_distance(gone: Tensor, norm: Tensor, norm_shifted: Tensor) -> Tensor:
    """From |g - f|, |f| and |g|."""
    both = norm * norm_shifted
    angle = (gone.square() - (norm_shifted - norm).square()).clamp(min=0) / (2 * both)
    return torch.where(both == 0, (gone > 0).double(), angle)


def _norm(f: Tensor) -> Float[Tensor, " batch"]:
    return f.flatten(1).norm(dim=1)


def _ratio(distance: Tensor, norm: Tensor) -> Tensor:
    return torch.where(distance == 0, 0.0, distance / norm)
