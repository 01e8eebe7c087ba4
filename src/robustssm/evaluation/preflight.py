"""What a model shows on clean examples, before any attack (athalye2018obfuscated, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.access import Access, Climb, Measure
from robustssm.core.errors import OutOfTime
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn
from robustssm.ops import divergence
from robustssm.ops.balls import over

EXAMPLES = 256
"""How many examples the preflight looks at."""

COMPARED = 16
"""How many of them have their gradient compared with differences."""

DISAGREEMENT = 0.2
"""Beyond this, relative to the gradient's length, a difference contradicts the gradient. Of twelve
plain models in float32 (convolutional, S4, S5, DSS, Mega, Mamba, trained or not) the largest was
0.11 (a Mega), all others below 0.01; of straight-through estimators of up to 16 levels, and of a
branch of equal weight cut off, half of the examples were above 0.5. In bfloat16, medians were 0.05
to 0.16, and 0.48 for that Mega."""

_ABOVE_ROUNDING = 1000.0  # the change that a difference measures, in roundings of the logits
_LONGEST = 0.02  # the longest step of a difference, in ranges of the input


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a model does on a few clean examples, before any attack."""

    examined: int
    differentiable: bool
    error: str = ""
    """What the passes with gradients said, where there are none."""
    zero_gradients: int
    """Examples whose input gradient is exactly zero, of the cross-entropy and of the margin."""
    tiny_gradients: int = 0
    """Examples whose margin, by its gradient, moves less than rounding over the inputs' range."""
    zero_losses: int = 0
    """Examples whose cross-entropy is exactly zero."""
    vanished: int = 0
    """Of these, those whose gradient is zero as well, although the margin's is not."""
    non_finite_gradients: int
    compared: int = 0
    """Examples whose gradient was compared with differences."""
    contradicted: int = 0
    """Those of them where every difference quotient along some direction contradicts it."""
    tolerance: float
    """Differences up to this, relative to the largest logit, are rounding."""
    randomness: float
    """Largest difference between two passes over the same inputs; relative, as those below."""
    batch_dependence: float
    """Largest difference between an example's logits in its batch and in half of it."""
    gradient_path: float
    """Largest difference between logits computed with and without gradients enabled."""
    probabilities: bool
    """Whether the "logits" are rows of probabilities."""


def preflight(
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    batch_size: int,
    bounds: tuple[float, float] | None = None,
) -> Preflight:
    """Looks at the logits and input gradients of a few examples.

    About six passes over them, and a hundred more over 16 of them.

    Args:
        model: In eval mode.
        x: Clean inputs (batch, ...).
        y: Their classes (batch,).
        batch_size: Examples at a time; what needs no gradient is looked at on the first batch.
        bounds: Range of the inputs; that of `x` if None.
    """
    access, error = Access.of(model), ""
    low, high = bounds or (float(x.min()), float(x.max()))
    first = x[:batch_size]
    half = first[: (len(first) + 1) // 2]  # not one alone, which train mode itself would refuse
    logits, again, among = (access.logits(points) for points in (first, first, half))
    counts, path, compared, contradicted = _Counts(), 0.0, 0, 0
    with torch.inference_mode(False), torch.enable_grad():
        x, labels = x.clone(), y.clone()  # those of inference mode cannot be saved for a backward
        try:
            for k, some in enumerate(x.split(batch_size)):
                climbed = counts.add(access, some, labels.split(batch_size)[k], (high - low) or 1.0)
                path = _gap(logits, climbed) if k == 0 else path
            rows = slice(0, min(COMPARED, batch_size))
            compared, contradicted = _compare(access, x[rows], labels[rows], (low, high))
        except OutOfTime:
            raise
        except Exception as failure:  # whatever a kernel says that has no backward pass
            error = f"{type(failure).__name__}: {failure}"
    return Preflight(
        examined=len(x),
        differentiable=not error,
        error=error,
        zero_gradients=counts.zero,
        tiny_gradients=counts.tiny,
        zero_losses=counts.flat,
        vanished=counts.vanished,
        non_finite_gradients=counts.non_finite,
        compared=compared,
        contradicted=contradicted,
        tolerance=max(1e-3, 8 * torch.finfo(logits.dtype).eps),
        randomness=_gap(logits, again),
        batch_dependence=_gap(logits[: len(half)], among),
        gradient_path=path,
        probabilities=bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()),
    )


@dataclass
class _Counts:
    """Examples, by what is wrong with their gradients."""

    zero: int = 0
    tiny: int = 0
    flat: int = 0
    vanished: int = 0
    non_finite: int = 0

    def add(self, model: Access, x: Tensor, y: Tensor, width: float) -> Tensor:
        """Counts a batch, and returns its logits as passes with gradients see them."""
        steep = model.climb(x, _measured(divergence.margin, y))
        entropy = model.climb(x, _measured(divergence.cross_entropy, y))
        gradient, other = (climb.gradient.flatten(1) for climb in (entropy, steep))
        rounding = torch.finfo(x.dtype).eps * steep.logits.abs().amax(1)
        reach = other.abs().sum(1) * width
        none = (gradient == 0).all(1)
        still = (other == 0).all(1)
        tiny = ~still & (reach < rounding)
        flat = entropy.loss == 0
        self.zero += int((none & still).sum())
        self.tiny += int(tiny.sum())
        self.flat += int(flat.sum())
        self.vanished += int((none & ~still & ~tiny).sum())
        self.non_finite += int((~gradient.isfinite()).any(1).sum())
        return entropy.logits


def _measured(loss: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> Measure:
    return lambda logits, rows: loss(logits, y[rows])


def _compare(model: Access, x: Tensor, y: Tensor, bounds: tuple[float, float]) -> tuple[int, int]:
    """How many gradients were compared with central differences, and how many are contradicted.

    What is differentiated is the logit of the strongest rival less that of the label: linear in
    the logits, so that losses add neither saturation nor kinks. Three steps are tried along two
    random directions and along the gradient: one just long enough for rounding, ten times that,
    and a fiftieth of the range; one that agrees is enough, as longer ones meet kinks and
    curvature, and shorter ones rounding that is coarser than the dtype says. Points are first
    moved by 4 % towards the middle of the range, as models may clip at its ends and inputs often
    lie there, or on the kinks of a network without biases.
    """
    low, high = bounds
    width = (high - low) or 1.0
    x = x + 2 * _LONGEST * ((low + high) / 2 - x)
    logits = model.logits(x)
    rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1)

    def gap(logits: Tensor, rows: slice) -> Tensor:
        pair = torch.stack((rival[rows], y[rows]), 1)
        return -logits.gather(1, pair).diff(dim=1).squeeze(1)

    at = model.climb(x, gap)
    gradient = at.gradient
    length = gradient.flatten(1).norm(dim=1)
    worst = torch.zeros_like(length)
    noise = Noise(0).fork("preflight").rows(len(x))
    for direction in (noise.signs(like=x), noise.signs(like=x), gradient.sign()):
        worst = worst.maximum(_disagreement(model, gap, x, at, direction, width))
    usable = (length > 0) & length.isfinite()
    return int(usable.sum()), int((usable & (worst > DISAGREEMENT)).sum())


def _disagreement(
    model: Access, gap: Measure, x: Tensor, at: Climb, direction: Tensor, width: float
) -> Tensor:
    """The least error, over the steps, of a gradient along a direction; relative to its length."""
    slope = (at.gradient * direction).flatten(1).sum(1)
    scale = slope.abs().maximum(at.gradient.flatten(1).norm(dim=1))
    rounding = torch.finfo(x.dtype).eps * at.logits.abs().amax(1)
    shortest = _ABOVE_ROUNDING * rounding / (2 * scale)
    least = torch.full_like(slope, torch.inf)
    for step in (shortest, 10 * shortest, torch.full_like(slope, _LONGEST * width)):
        step = step.clamp(max=_LONGEST * width)
        move = over(step, x) * direction
        above, below = (gap(model.logits(z), slice(None)) for z in (x + move, x - move))
        error = ((above - below) / (2 * step) - slope).abs()
        # Where even the longest step is too short for rounding, rounding is allowed for.
        error = (error - 8 * rounding / step).clamp(min=0)
        least = least.minimum(error / scale)
    return least


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; NaN, which raises no flag, if either has one."""
    largest = float(a.abs().max())
    return float((a - b).abs().max()) / largest if largest > 0 else 0.0
