"""The multi-dimensional damped moving average of Mega (ma2023mega)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.rng import Noise
from robustssm.layers.preparation import Preparing
from robustssm.ops.moving_average import (
    PreparedAverages,
    averaging_kernel,
    moving_average,
    prepared_averages,
)
from robustssm.ops.recurrence import Recurrence


class MovingAverage(Preparing):
    """Averages h_n of every channel, read and added to a skip: y = sum_n gamma h_n / sqrt(N) + w x.

    h_n[t] = q_n h_n[t-1] + p_n beta_n x[t] with p = sigmoid(delta), q = 1 - p sigmoid(alpha), for
    every channel; with two directions a second set of averages runs backwards and both are added
    (so the present token counts in both). Computed in at least float32.

    Source: ma2023mega, equations 5 to 7, and its released code, which adds the skip.
    """

    def __init__(self, *, d_model: int, d_state: int, directions: int, noise: Noise):
        """Draws delta and alpha ~ N(0, 0.2), beta ~ N(0, 0.02) + (1, -1, ...), the rest ~ N(0, 1).

        Args:
            d_model: Number of channels.
            d_state: Averages per channel and direction.
            directions: 1 for causal, 2 for both.
            noise: Source of the initial draws.
        """
        super().__init__()
        shape = (directions, d_model, d_state)
        self.delta = nn.Parameter(noise.fork("delta").normal(*shape, std=0.2))
        self.alpha = nn.Parameter(noise.fork("alpha").normal(*shape, std=0.2))
        signs = 1.0 - 2.0 * (torch.arange(d_state) % 2)
        self.beta = nn.Parameter(noise.fork("beta").normal(*shape, std=0.02) + signs)
        self.gamma = nn.Parameter(noise.fork("gamma").normal(*shape))
        self.omega = nn.Parameter(noise.fork("omega").normal(d_model))

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            length = x.shape[1]

            def make() -> PreparedAverages:
                return prepared_averages(*self._averages(dtype), self.omega.to(dtype), length)

            averages = self._prepared((length, dtype, self.omega.device), make)
            y = moving_average(x.to(dtype), averages)
            return y.to(x.dtype)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "directions d_model length"]:
        """k[l] = sum_n gamma_n p_n beta_n q_n^l / sqrt(N): the average's response, without skip."""
        return averaging_kernel(*self._averages(dtype), length)

    def systems(self, dtype: torch.dtype) -> list[Recurrence]:
        """One for each direction; the first one has the skip."""
        p, q = self._weights(dtype)
        B = p * self.beta.to(dtype)
        C = self.gamma.to(dtype) / math.sqrt(p.shape[-1])
        skip = self.omega.to(dtype)[:, None, None]
        return [
            Recurrence(
                A=q[None, None, k],
                B=B[None, None, k, :, :, None],
                C=C[None, None, k, :, None],
                D=skip if k == 0 else torch.zeros_like(skip),
            )
            for k in range(len(p))
        ]

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns p and q, (directions, d_model, d_state)."""
        p = torch.sigmoid(self.delta.to(dtype))
        return p, 1 - p * torch.sigmoid(self.alpha.to(dtype))

    def _averages(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors, in float64, and weights p beta gamma / sqrt(N) in `dtype`."""
        p, q = self._weights(torch.float64)
        return q, (p * self.beta * self.gamma / math.sqrt(p.shape[-1])).to(dtype)
