"""Where students start: the published initialisation, and the control with independent layers.

The published code draws every layer from one integer seed, so that the layers of one student share
one stream of random numbers: b and c are the same numbers in another order, and so are the first
and the last layer of the network. With "independent" streams they are not.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field

from robustssm.core.config import settings
from robustssm.core.rng import Noise, published_numpy_stream
from robustssm.models.linear_ssm import LinearSSM

LAGGING = (1.0, 1.01, 1.05)
"""How many tie gaps the second, third and fourth entry stand below the first."""


@settings
class Start:
    """How a student that is trained by gradient descent starts.

    Source: slutzky2024implicit, the published code.
    """

    a_scale: Annotated[float, Field(gt=0)] = 1e-3
    """Standard deviation of the entries of A before sorting."""
    weight_scale: Annotated[float, Field(gt=0)] = 1e-3
    """The same for b and c."""
    gap_rate: Annotated[float | None, Field(ge=0)] = 5.0
    """The tie gap is 0.05 / exp(gap_rate log10(1 / a_scale)); None leaves the draw as it is."""
    warm: Annotated[float, Field(ge=0)] = 0.1
    """Added to every entry of A and b, not of c."""
    tied: Annotated[int, Field(ge=2, le=4)] = 2
    """How many leading entries are set almost equal."""
    streams: Literal["shared", "independent"] = "shared"
    """Whether all layers draw the same numbers, as published, or each its own."""

    @property
    def gap(self) -> float | None:
        """The tie gap."""
        return None if self.gap_rate is None else tie_gap(self.a_scale, self.gap_rate)


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """The network behind the SSM: two hidden ReLU layers without biases, for one or more runs."""

    inward: Float64[np.ndarray, "*runs width"]
    hidden: Float64[np.ndarray, "*runs width width"]
    """From the first layer's unit (rows) to the second's."""
    outward: Float64[np.ndarray, "*runs width"]


def tie_gap(scale: float, rate: float) -> float:
    """0.05 / exp(rate log10(1 / scale)), the published distance of the two largest entries."""
    return 0.05 / float(np.exp(rate * np.log10(1 / scale)))


def theorem_start(
    seed: int, *, d_state: int, scale: float, gap: float | None
) -> Float64[np.ndarray, " d_state"]:
    """The initial diagonal of the theorem's experiment, from the published stream.

    Args:
        seed: Of numpy's legacy generator.
        d_state: Number of entries.
        scale: They are uniform on [0, scale], sorted from the largest.
        gap: The second is set to the first minus this; None leaves it as drawn.
    """
    drawn = scale * published_numpy_stream(seed).random_sample(d_state)
    a = np.sort(drawn)[::-1].copy()
    if gap is not None:
        a[1] = a[0] - gap
    return a


def student(start: Start, *, d_state: int, noise: Noise) -> LinearSSM:
    """The SSM of one student before training."""
    square = _draw(start, noise, "a", d_state * d_state).reshape(d_state, d_state)
    a = _descending(np.diag(square)) * start.a_scale
    b = _descending(_draw(start, noise, "b", d_state)) * start.weight_scale
    # The published code sorts c along an axis of size 1, which leaves it reversed but unsorted.
    c = np.abs(_draw(start, noise, "c", d_state))[::-1] * start.weight_scale
    if start.gap is not None:
        for entry, lag in enumerate(LAGGING[: min(start.tied, d_state) - 1], 1):
            a[entry], b[entry] = a[0] - lag * start.gap, b[0] - lag * start.gap
    return LinearSSM(a=a + start.warm, b=b + start.warm, c=c.copy())


def head(start: Start, *, width: int, scale: float, noise: Noise) -> Head:
    """The network of one student before training, with N(0, scale) entries."""
    return Head(
        inward=_draw(start, noise, "inward", width) * scale,
        hidden=_draw(start, noise, "hidden", width * width).reshape(width, width) * scale,
        outward=_draw(start, noise, "outward", width) * scale,
    )


def teacher_head(width: int) -> Head:
    """The teacher's network: y = width / 2 max(z, 0)."""
    return Head(inward=np.ones(width), hidden=np.eye(width), outward=np.full(width, 0.5))


def _draw(start: Start, noise: Noise, layer: str, count: int) -> Float64[np.ndarray, " count"]:
    stream = noise.fork("layer", "all" if start.streams == "shared" else layer)
    return stream.normal(count, dtype=torch.float64).numpy()


def _descending(values: Float64[np.ndarray, " d_state"]) -> Float64[np.ndarray, " d_state"]:
    return np.sort(np.abs(values))[::-1].copy()
