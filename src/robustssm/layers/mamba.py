"""The first Mamba block (gu2023mamba): a diagonal recurrence that its own input steers."""

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.observation import observe, observed
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, LayerConfig, Role
from robustssm.layers.linear import Linear
from robustssm.layers.preparation import Preparing
from robustssm.ops.dense import dense
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.selective_scan import Discretization, hold_gain, selective_scan
from robustssm.ops.short_convolution import short_convolution


@register("mamba")
@settings
class MambaConfig(LayerConfig):
    """Settings of a Mamba block.

    Source: gu2023mamba, section 3.4 and its released code; qi2024exploring has d_state 16 on
    CIFAR-10 and 32 on MNIST.
    """

    d_state: Annotated[int, Field(ge=1)] = 16
    """States per inner channel."""
    expand: Annotated[int, Field(ge=1)] = 2
    """Inner channels per channel."""
    d_conv: Annotated[int, Field(ge=1)] = 4
    """Taps of the convolution before the scan."""
    dt_rank: Annotated[int, Field(ge=1)] | None = None
    """Rank of the map to the step sizes; None is d_model / 16, rounded up."""
    dt_min: Annotated[float, Field(gt=0)] = 1e-3
    dt_max: Annotated[float, Field(gt=0)] = 1e-1
    discretization: Discretization = "euler"
    """Of B: "euler" as in the released code, "zoh" as in the paper's equation 4."""
    scaling: AdaptiveScalingConfig | None = None
    """Adaptive scaling of what the scan puts out."""

    def __post_init__(self) -> None:
        if self.dt_min > self.dt_max:
            raise ValueError(
                f"`MambaConfig(dt_min=...)` must be at most dt_max; got {self.dt_min} and "
                f"{self.dt_max}. Swap them."
            )

    def build(self, *, d_model: int, length: int, noise: Noise) -> "Mamba":
        """Makes the block in float32 on the CPU; any length will do."""
        del length
        return Mamba(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Euler, and zero-order hold with adaptive scaling and uncommon sizes."""
        scaling = AdaptiveScalingConfig(activation="tanh")
        return (
            cls(),
            cls(d_state=3, d_conv=1, dt_rank=2, discretization="zoh", scaling=scaling),
        )


class MambaState(NamedTuple):
    """What the block remembers: the last inputs of its convolution, and the state of its scan."""

    window: Float[Tensor, "batch taps d_inner"]
    h: Float[Tensor, "batch d_inner d_state"]


class _Selected(NamedTuple):
    """The system that an input selects."""

    delta: Float[Tensor, "batch length d_inner"]
    A: Float[Tensor, "d_inner d_state"]
    B: Float[Tensor, "batch length d_state"]
    C: Float[Tensor, "batch length d_state"]
    D: Float[Tensor, " d_inner"]


class Mamba(Preparing, CausalLayer):
    """out = W_out (scan(u) * silu(z)) with (v, z) = W_in x and u = silu(conv(v)).

    The scan has (dt, B, C) = W_x u, delta = softplus(W_dt dt + b), A = -exp(A_log); its step sizes
    and states are never in less than float32. Parameters are named as in the released code.

    Source: gu2023mamba, section 3.4. Oracle: a loop over its formulas (tests/layers/test_mamba.py).
    """

    def __init__(self, config: MambaConfig, *, d_model: int, noise: Noise):
        """Made by `MambaConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        self.d_inner = inner = config.expand * d_model
        self.dt_rank = rank = config.dt_rank or math.ceil(d_model / 16)
        taps, state = config.d_conv, config.d_state
        with global_stream(noise.fork("linear")):
            self.in_proj = Linear(d_model, 2 * inner, bias=False)
            self.conv1d = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
            self.x_proj = Linear(inner, rank + 2 * state, bias=False)
            self.dt_proj = Linear(rank, inner)
            self.out_proj = Linear(inner, d_model, bias=False)
        with torch.no_grad():
            bound = rank**-0.5
            self.dt_proj.weight.copy_(
                noise.fork("dt_weight").uniform(inner, rank, low=-bound, high=bound)
            )
            self.dt_proj.bias.copy_(_initial_step_bias(config, inner, noise.fork("dt")))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.scaling = (
            config.scaling.build(d_model=inner, noise=noise.fork("scaling"))
            if config.scaling
            else None
        )

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        v, z = self.in_proj.parts(x, 2)
        observe(self, "projection", x, v)
        u = observe(self, "convolution", v, self._convolved(v))
        steps, bias, *system = self._driven(u)
        gated = self.scaling is None and z.dtype == steps.dtype and not observed()
        with torch.autocast(x.device.type, enabled=False):
            y = selective_scan(
                u.to(steps.dtype),
                steps,
                *system,
                bias=bias,
                gate=z if gated else None,
                discretization=self.config.discretization,
            )
        if gated:
            return self.out_proj(y)
        y = observe(self, "ssm", u, y.to(u.dtype))
        return self._out(y, z)

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """One system per inner channel, as `x` selects it, driven by the convolution's output."""
        u = self._convolved(self.in_proj(x).chunk(2, -1)[0])
        delta, A, B, C, D = self._select(u)
        held = delta[..., None]
        return Recurrence(
            A=torch.exp(held * A),
            B=(self._gain(held, A) * B[:, :, None])[..., None],
            C=C[:, :, None, None],
            D=D[:, None, None],
            u=u.to(delta.dtype),
        )

    def initial_state(self, batch_size: int) -> MambaState:
        """No inputs yet, and a state of zero."""
        window = self.D.new_zeros(batch_size, self.config.d_conv - 1, self.d_inner)
        h = self.D.new_zeros(
            batch_size, self.d_inner, self.config.d_state, dtype=self._state_dtype()
        )
        return MambaState(window, h)

    def step(
        self, x: Float[Tensor, "batch d_model"], state: MambaState
    ) -> tuple[Float[Tensor, "batch d_model"], MambaState]:
        """One time step."""
        v, z = self.in_proj(x).chunk(2, -1)
        window = torch.cat([state.window, v[:, None]], 1)
        taps = rearrange(self.conv1d.weight, "inner 1 taps -> taps inner")
        assert self.conv1d.bias is not None
        u = F.silu((window * taps).sum(1) + self.conv1d.bias)
        delta, A, B, C, D = self._select(u[:, None])
        held = delta[:, 0, :, None]
        driven = self._gain(held, A) * B * u[..., None]
        h = torch.exp(held * A) * state.h + driven
        y = (h * C).sum(-1) + D * u
        return self._out(y.to(u.dtype), z), MambaState(window[:, 1:], h)

    def roles(self) -> Mapping[str, Role]:
        """A and the step sizes' bias are dynamics, the skip is a gain."""
        return {"A_log": "dynamics", "dt_proj.bias": "dynamics", "D": "gain"}

    def _convolved(self, v: Tensor) -> Tensor:
        """silu(conv(v))."""
        assert self.conv1d.bias is not None
        return short_convolution(v, self.conv1d.weight[:, 0], self.conv1d.bias)

    def _select(self, u: Tensor) -> _Selected:
        """The system at every step, in at least float32 and with autocast off."""
        steps, bias, *system = self._driven(u)
        with torch.autocast(u.device.type, enabled=False):
            return _Selected(F.softplus(steps + bias), *system)

    def _driven(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The same with step sizes as x and bias of softplus(x + bias)."""
        selected = self.x_proj(u)
        with torch.autocast(u.device.type, enabled=False):
            dtype = self._state_dtype()
            dt, B, C = selected.to(dtype).split(
                [self.dt_rank, self.config.d_state, self.config.d_state], -1
            )
            A = self._prepared((dtype, dt.device), lambda: -torch.exp(self.A_log.to(dtype)))
            steps = dense(dt, self.dt_proj.weight.to(dtype))
            return steps, self.dt_proj.bias.to(dtype), A, B, C, self.D.to(dtype)

    def _gain(self, held: Tensor, A: Tensor) -> Tensor:
        return held if self.config.discretization == "euler" else hold_gain(held, A)

    def _out(self, y: Tensor, z: Tensor) -> Tensor:
        if y.ndim == 2:  # a single token
            y = y if self.scaling is None else self.scaling(y)
            return self.out_proj(y * F.silu(z))
        if self.scaling is not None:
            y = observe(self, "ads", y, self.scaling(y))
        gated = observe(self, "gate", y, y * F.silu(z))
        return observe(self, "linear", gated, self.out_proj(gated))

    def _state_dtype(self) -> torch.dtype:
        return torch.promote_types(self.A_log.dtype, torch.float32)


def _initial_step_bias(config: MambaConfig, inner: int, noise: Noise) -> Tensor:
    """The b with softplus(b) log-uniform in [dt_min, dt_max], and at least 1e-4."""
    log_dt = noise.uniform(
        inner, low=math.log(config.dt_min), high=math.log(config.dt_max), dtype=torch.float64
    )
    dt = log_dt.exp().clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
