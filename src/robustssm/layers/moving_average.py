"""The multi-dimensional damped moving average of Mega (ma2023mega)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.rng import Noise
from robustssm.layers.preparation import Preparing
from robustssm.ops.convolution import causal_convolution
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.structured import vandermonde_product

# Up to here one matrix product per channel serves both directions in less than half the time of two
# convolutions: with input gradient, batch 64, length 196, 64 channels, one core, 14 ms to 29 ms.
_TOEPLITZ_UP_TO = 256


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
        """Maps (batch, length, d_model) to the same shape, by convolution."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            u, length = x.to(dtype), x.shape[1]
            key = (length, dtype, self.omega.device)
            if len(self.delta) == 1:
                taps = self._prepared(key, lambda: self._taps(length, dtype)[0])
                y = causal_convolution(u, taps)
            elif length <= _TOEPLITZ_UP_TO:
                T = self._prepared(key, lambda: _toeplitz(*self._taps(length, dtype)))
                y = torch.bmm(u.permute(2, 0, 1), T).permute(1, 2, 0)
            else:
                taps = self._prepared(key, lambda: self._taps(length, dtype).flatten(0, 1))
                both = causal_convolution(torch.cat([u, u.flip(1)], -1), taps)
                y = both[..., : x.shape[2]] + both[..., x.shape[2] :].flip(1)
            return y.to(x.dtype)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "directions d_model length"]:
        """k[l] = sum_n gamma_n p_n beta_n q_n^l / sqrt(N): the average's response, without skip."""
        p, q = self._weights(torch.float64)
        weights = p * self.beta * self.gamma / math.sqrt(p.shape[-1])
        K = vandermonde_product(weights.flatten(0, 1).to(dtype), q.flatten(0, 1), length)
        return K.unflatten(0, (len(p), -1))

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

    def _taps(self, length: int, dtype: torch.dtype) -> Float[Tensor, "directions d_model length"]:
        """The kernels, with the skip in tap 0 of the first."""
        kernel = self.kernel(length, dtype=dtype)
        skip = F.pad(self.omega.to(dtype)[:, None], (0, length - 1))
        return torch.cat([kernel[:1] + skip, kernel[1:]])


def _toeplitz(
    ahead: Float[Tensor, "channels length"], behind: Float[Tensor, "channels length"]
) -> Float[Tensor, "channels sources targets"]:
    """T[c, s, t] = ahead[c, t - s] for t >= s, plus behind[c, s - t] for t <= s."""
    middle = ahead[:, :1] + behind[:, :1]
    kernel = torch.cat([behind[:, 1:].flip(1), middle, ahead[:, 1:]], 1)
    return kernel.unfold(1, ahead.shape[1], 1).flip(1)
