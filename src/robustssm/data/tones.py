"""Struck tones under noise: a sequence like a short sound, whose class is the pitch."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.data.synthetic import Synthetic

GRID = 32
"""Phases that the bound on the true rule's robustness looks at."""


@register("tones")
@settings
class Tones(Synthetic):
    """Sequences (length, 1) in [-1, 1]: two decaying partials, f and 2 f, in white noise.

        x_t = a exp(-u / tau) (2/3 sin(2 pi f u + p) + 1/3 sin(4 pi f u + q)) + n_t

    with u = t - s >= 0, and noise alone before. The class is f, one of `classes` pitches in equal
    ratios from `lowest` to `highest` cycles per token. Loudness a is uniform on [0.7, 0.9], onset s
    below length / 16, decay time tau on [1/8, 1/4] of the length, both phases on the circle; n is
    normal with deviation `noise`, and the sum is clipped to [-1, 1].

    Chance is 1 / classes, and so is whatever reads the last quarter only, where the tone has gone.
    As phases are random, x and -x are equally likely in every class, which no linear classifier of
    the whole sequence can follow: 40 % at the defaults, where chance is 20 %. A model must
    resonate, with a memory of the dozens of tokens over which neighbouring pitches fall apart.
    `rule` compares what the damped filters of the pitches take up; `radii` bounds, example by
    example, which perturbation it withstands.

    Source: none; a task of our own, after sounds of plucked strings.
    """

    length: Annotated[int, Field(ge=32)] = 256
    classes: Annotated[int, Field(ge=2)] = 5
    lowest: Annotated[float, Field(gt=0, lt=0.25)] = 0.04
    highest: Annotated[float, Field(gt=0, lt=0.25)] = 0.24
    """In cycles per token; below 1/4, so that its overtone is below half the sampling rate."""
    noise: Annotated[float, Field(ge=0)] = 0.05

    def __post_init__(self) -> None:
        if self.lowest >= self.highest:
            raise ValueError(
                violation(
                    "`Tones(lowest=..., highest=...)`",
                    "have lowest < highest",
                    f"{self.lowest}, {self.highest}",
                )
            )

    @property
    def num_classes(self) -> int:
        """Number of pitches."""
        return self.classes

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the inputs."""
        return (-1.0, 1.0)

    @property
    def pitches(self) -> Float[Tensor, " classes"]:
        """Frequency of each class, in cycles per token, float64."""
        ratio = (self.highest / self.lowest) ** (1 / (self.classes - 1))
        return self.lowest * ratio ** torch.arange(self.classes, dtype=torch.float64)

    def draw(
        self, noise: Noise, count: int
    ) -> tuple[Float[Tensor, "n length channels"], Int[Tensor, " n"]]:
        """See `Synthetic.draw`."""
        y = noise.fork("pitch").integers(count, high=self.classes)
        drawn = noise.fork("shape").uniform(count, 4, dtype=torch.float64)[..., None]
        loudness, tau = 0.7 + 0.2 * drawn[:, 0], self.length / 8 * (1 + drawn[:, 1])
        phases = 2 * math.pi * drawn[:, 2:]
        onset = noise.fork("onset").integers(count, 1, high=max(1, self.length // 16))
        t = torch.arange(self.length) - onset
        turns = 2 * math.pi * self.pitches[y][:, None] * t
        tone = 2 / 3 * torch.sin(turns + phases[:, 0]) + 1 / 3 * torch.sin(2 * turns + phases[:, 1])
        heard = loudness * torch.where(t >= 0, torch.exp(-t.clamp(min=0) / tau), 0.0) * tone
        background = noise.fork("noise").normal(
            count, self.length, std=self.noise, dtype=torch.float64
        )
        return (heard + background).clamp(-1, 1).float()[..., None], y

    def rule(self, x: Float[Tensor, "n length channels"]) -> Int[Tensor, " n"]:
        """See `Synthetic.rule`: the pitch whose damped filter takes up most."""
        return self._levels(x).argmax(1)

    def radii(
        self, x: Float[Tensor, "n length channels"], y: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """For each example, an linf distance within which `rule` provably says `y`; below 0: never.

        A perturbation d moves the level of filter f by at most |sum_t w_t exp(-2 pi i f t) d_t|.
        Of two filters f and g, these moves add up to at most

            |d|_inf max over p, q of sum_t w_t |cos(2 pi f t + p) + cos(2 pi g t + q)|,

        and the rule holds while that is less than the lead of `y` over every other pitch.
        """
        levels = self._levels(x)
        lead = levels.gather(1, y[:, None]) - levels
        radius = lead / self._reach()[y]
        return radius.scatter(1, y[:, None], math.inf).amin(1)

    def _reach(self) -> Float[Tensor, "classes classes"]:
        """The maximum over phases, from a grid of them.

        Between points of the grid the maximum is higher by at most 1 / cos(half a step), as both
        moves shrink by no more than that cosine when phases are rounded.
        """
        t = torch.arange(self.length, dtype=torch.float64)
        phases = torch.arange(GRID, dtype=torch.float64) * (2 * math.pi / GRID)
        waves = torch.cos(2 * math.pi * self.pitches[:, None, None] * t + phases[:, None])
        reach = torch.zeros(self.classes, self.classes, dtype=torch.float64)
        for one in range(self.classes):
            for other in range(one):
                both = (waves[one][:, None] + waves[other]).abs() @ self._window()
                reach[one, other] = reach[other, one] = both.max() / math.cos(math.pi / GRID)
        return reach

    def _levels(self, x: Float[Tensor, "n length channels"]) -> Float[Tensor, "n classes"]:
        t = torch.arange(self.length, dtype=torch.float64)
        filters = torch.exp(-2j * math.pi * self.pitches[:, None] * t) * self._window()
        return (x[..., 0].to(filters.dtype) @ filters.T).abs()

    def _window(self) -> Float[Tensor, " length"]:
        return torch.exp(-torch.arange(self.length, dtype=torch.float64) / (3 * self.length / 16))
