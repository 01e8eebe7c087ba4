"""What S4, S4D and DSS share: a linear time-invariant system per channel, run as a convolution."""

import math
from abc import abstractmethod

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.errors import violation
from robustssm.core.observation import observe
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, SequenceLayer
from robustssm.layers.preparation import Preparing
from robustssm.ops import recurrence as recurrences
from robustssm.ops.convolution import PreparedKernel, causal_convolution, prepared_kernel
from robustssm.ops.recurrence import Recurrence

Taps = Float[Tensor, "d_model length"]


class ConvolutionalLayer(Preparing, SequenceLayer):
    """y = K * u + D u, channel by channel, then adaptive scaling if there is any."""

    def __init__(self, *, d_model: int, scaling: AdaptiveScalingConfig | None, noise: Noise):
        """Draws D ~ N(0, 1) and makes the scaling.

        Args:
            d_model: Number of channels.
            scaling: Settings of the scaling, or None.
            noise: Source of the initial draws.
        """
        super().__init__()
        self.d_model = d_model
        self.D = nn.Parameter(noise.fork("D").normal(d_model))
        self.scaling = (
            scaling.build(d_model=d_model, noise=noise.fork("scaling")) if scaling else None
        )

    @abstractmethod
    def kernel(self, length: int, *, dtype: torch.dtype = torch.float32) -> Taps:
        """What channel c answers to a unit at time 0, K[c, t], without the skip D; in `dtype`."""

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape, device and dtype."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            y = causal_convolution(x.to(dtype), self.taps(x.shape[1], dtype=dtype))
        return self._scale(observe(self, "ssm", x, y.to(x.dtype)))

    def taps(self, length: int, *, dtype: torch.dtype = torch.float32) -> PreparedKernel:
        """The kernel in `dtype` with the skip D in its first tap, ready for many convolutions."""
        key = (length, dtype, self.D.device)
        return self._prepared(key, lambda: prepared_kernel(self._taps(length, dtype)))

    def _scale(self, y: Tensor) -> Tensor:
        if self.scaling is None:
            return y
        scaled = self.scaling(y)
        return observe(self, "ads", y, scaled) if y.ndim == 3 else scaled

    def _taps(self, length: int, dtype: torch.dtype) -> Taps:
        """The kernel with the skip as part of its first tap."""
        kernel = self.kernel(length, dtype=dtype)
        first = kernel[:, :1] + self.D.to(dtype)[:, None]
        return torch.cat([first, kernel[:, 1:]], 1)


class SteppedConvolutionalLayer(ConvolutionalLayer, CausalLayer):
    """A convolutional layer whose system is one at every length, so that it can be stepped."""

    @abstractmethod
    def system(self, *, dtype: torch.dtype = torch.float32) -> Recurrence:
        """The discretised system, batch and time axes of size 1, its real parts in `dtype`."""

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """The system in the precision of `x` (float32 at least); the same for every input."""
        return self.system(dtype=torch.promote_types(x.dtype, torch.float32))

    def initial_state(self, batch_size: int) -> tuple[Tensor, Recurrence]:
        """Zeros, and the system that later steps will run."""
        system = self.system(dtype=torch.promote_types(self.D.dtype, torch.float32))
        token = system.D.new_zeros(batch_size, self.d_model)
        return recurrences.initial_state(system, token), system

    def step(
        self, x: Float[Tensor, "batch d_model"], state: tuple[Tensor, Recurrence]
    ) -> tuple[Float[Tensor, "batch d_model"], tuple[Tensor, Recurrence]]:
        """One time step, (batch, d_model) to (batch, d_model)."""
        h, system = state
        y, h = recurrences.step(system, h, x)
        return self._scale(y), (h, system)


def log_steps(noise: Noise, d_model: int, dt_min: float, dt_max: float) -> nn.Parameter:
    """Draws log dt for each channel, uniform between log dt_min and log dt_max."""
    return nn.Parameter(noise.uniform(d_model, low=math.log(dt_min), high=math.log(dt_max)))


def normal_pairs(noise: Noise, *shape: int) -> nn.Parameter:
    """Complex standard normal numbers, E|c|^2 = 1, stored as (..., 2) reals."""
    return nn.Parameter(noise.normal(*shape, 2, std=0.5**0.5))


def as_complex(pairs: Float[Tensor, "*shape 2"], dtype: torch.dtype) -> Tensor:
    """(..., 2) reals to complex numbers whose parts are in `dtype`."""
    return torch.view_as_complex(pairs.to(dtype))


def per_channel(values: Tensor, d_model: int) -> Tensor:
    """(copies, ...) to (d_model, ...): channel c reads copy c mod copies. One is left as it is."""
    copies = len(values)
    if copies in (1, d_model):
        return values
    return repeat(values, "copies ... -> (times copies) ...", times=d_model // copies)


def check_ssm(name: str, d_state: int, dt_min: float, dt_max: float) -> None:
    """What every configuration of these layers must satisfy.

    Raises:
        ValueError: If the state size is odd or the step sizes are out of order.
    """
    if d_state % 2:
        raise ValueError(
            violation(
                f"`{name}(d_state=...)`",
                "be a positive even number, as states come in conjugate pairs",
                f"d_state={d_state}",
                f"Try d_state={d_state + 1}.",
            )
        )
    if dt_min > dt_max:
        raise ValueError(
            violation(
                f"`{name}(dt_min=..., dt_max=...)`",
                "have dt_min <= dt_max",
                f"{dt_min} > {dt_max}",
                "Swap them.",
            )
        )


def check_copies(name: str, copies: int, d_model: int) -> None:
    """Refuses a number of copies that does not divide the channels.

    Raises:
        ValueError: If it does not.
    """
    if d_model % copies:
        raise ValueError(
            violation(
                f"`{name}(ssm_copies=...)`",
                "divide d_model, as every copy serves equally many channels",
                f"{copies} for d_model={d_model}",
                "Use 1, None (one per channel) or another divisor.",
            )
        )
