"""The Mamba-2 block (dao2024transformers): heads with one decay each, steered by the input."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.observation import observe, observed
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, LayerConfig, Role
from robustssm.layers.linear import Linear
from robustssm.layers.preparation import Preparing
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.short_convolution import short_convolution
from robustssm.ops.state_space_dual import state_space_dual

_WIDEST_HEAD = 64
_EPSILON = 1e-5  # of the norm before the output map


@register("mamba2")
@settings
class Mamba2Config(LayerConfig):
    """Settings of a Mamba-2 block.

    slutzky2024implicit's victim has d_state 16 and initial "normal".

    Source: dao2024transformers, section 7 and its released code.
    """

    d_state: Annotated[int, Field(ge=1)] = 128
    """Rows of a head's state."""
    expand: Annotated[int, Field(ge=1)] = 2
    """Inner channels per channel."""
    headdim: Annotated[int, Field(ge=1)] | None = None
    """Inner channels per head, which must divide them. None: 64, or what inner channels and 64 have
    as greatest common divisor."""
    d_conv: Annotated[int, Field(ge=1)] = 4
    """Taps of the convolution before the scan."""
    chunk: Annotated[int, Field(ge=1)] = 32
    """Longest chunk of time that is one matrix product; a matter of speed alone."""
    initial: Literal["published", "normal"] = "published"
    """"published": A uniform in [-16, -1], step sizes log-uniform in [dt_min, dt_max]. "normal", a
    minimal port: log(-A) and the bias of the step sizes normal of deviation 0.1."""
    dt_min: Annotated[float, Field(gt=0)] | None = None
    """0.001 if None. It goes with initial "published", as dt_max does."""
    dt_max: Annotated[float, Field(gt=0)] | None = None
    """0.1 if None."""
    scaling: AdaptiveScalingConfig | None = None
    """Adaptive scaling of what the scan puts out."""

    def __post_init__(self) -> None:
        subject = "`Mamba2Config(dt_min=..., dt_max=...)`"
        if self.initial == "normal" and (self.dt_min, self.dt_max) != (None, None):
            must = "be None with initial='normal', which draws step sizes by another rule"
            got = f"{self.dt_min} and {self.dt_max}"
            raise ValueError(violation(subject, must, got, "Leave them out."))
        low, high = self.step_sizes
        if low > high:
            must = "have dt_min <= dt_max"
            raise ValueError(violation(subject, must, f"{low} > {high}", "Swap them."))

    @property
    def step_sizes(self) -> tuple[float, float]:
        """The smallest and the largest initial step size."""
        return self.dt_min or 1e-3, self.dt_max or 1e-1

    def build(self, *, d_model: int, length: int, noise: Noise) -> "Mamba2":
        """Makes the block in float32 on the CPU; any length will do.

        Raises:
            ValueError: If `headdim` does not divide the inner channels.
        """
        del length
        inner = self.expand * d_model
        if self.headdim is not None and inner % self.headdim:
            must = f"divide expand * d_model = {inner}"
            advice = f"Try {math.gcd(inner, self.headdim)}, or None."
            subject = "`Mamba2Config(headdim=...)`"
            raise ValueError(violation(subject, must, self.headdim, advice))
        return Mamba2(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Several heads; chunks that do not fill the sequence; adaptive scaling, uncommon sizes."""
        scaling = AdaptiveScalingConfig(activation="tanh")
        return (
            cls(d_state=16, headdim=8),
            cls(d_state=3, d_conv=1, expand=1, headdim=2, chunk=5, scaling=scaling),
            cls(d_state=80, initial="normal", chunk=4),
        )


class Mamba2State(NamedTuple):
    """What the block remembers: the last inputs of its convolution, and the state of its scan."""

    window: Float[Tensor, "batch taps mixed"]
    h: Float[Tensor, "batch heads headdim d_state"]


class _Selected(NamedTuple):
    """The system that an input selects, and what drives it."""

    u: Float[Tensor, "batch length d_inner"]
    delta: Float[Tensor, "batch length heads"]
    A: Float[Tensor, " heads"]
    B: Float[Tensor, "batch length d_state"]
    C: Float[Tensor, "batch length d_state"]
    D: Float[Tensor, " heads"]


class Mamba2(Preparing, CausalLayer):
    """out = W_out norm(scan(u) * silu(z)), (z, v, dt) = W_in x, (u, B, C) = silu(conv(v)).

    In the scan delta = softplus(dt + b) and A = -exp(A_log), one number for each head; its step
    sizes and states are never in less than float32. The norm divides by the root mean square.
    Parameters are named as in the released code.

    Source: dao2024transformers, section 7.1 (parallel projections, one group of B and C).
    Oracle: a loop over its formulas (tests/layers/test_mamba2.py).
    """

    def __init__(self, config: Mamba2Config, *, d_model: int, noise: Noise):
        """Made by `Mamba2Config.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        self.d_inner = inner = config.expand * d_model
        self.headdim = config.headdim or math.gcd(inner, _WIDEST_HEAD)
        self.heads = heads = inner // self.headdim
        mixed, taps = inner + 2 * config.d_state, config.d_conv
        with global_stream(noise.fork("linear")):
            self.in_proj = Linear(d_model, inner + mixed + heads, bias=False)
            self.conv1d = nn.Conv1d(mixed, mixed, taps, groups=mixed, padding=taps - 1)
            self.out_proj = Linear(inner, d_model, bias=False)
        A_log, bias = _initial(config, heads, noise)
        self.A_log, self.dt_bias = nn.Parameter(A_log), nn.Parameter(bias)
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=_EPSILON)
        self.scaling = (
            config.scaling.build(d_model=inner, noise=noise.fork("scaling"))
            if config.scaling
            else None
        )

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        z, v, dt = self._projected(x)
        observe(self, "projection", x, v[..., : self.d_inner])
        mixed = self._convolved(v)
        u, *system = self._select(mixed, dt)
        observe(self, "convolution", v[..., : self.d_inner], mixed[..., : self.d_inner])
        fused = self.scaling is None and not observed()
        with torch.autocast(x.device.type, enabled=False):
            y = state_space_dual(
                self._by_head(u),
                *system,
                gate=self._by_head(z.to(u.dtype)) if fused else None,
                chunk=self.config.chunk,
            ).flatten(2)
        if fused:
            return self.out_proj(self._normed(y).to(mixed.dtype))
        y = observe(self, "ssm", mixed[..., : self.d_inner], y.to(mixed.dtype))
        if self.scaling is not None:
            y = observe(self, "ads", y, self.scaling(y))
        gated = observe(self, "gate", y, y * F.silu(z))
        normed = observe(self, "norm", gated, self._normed(gated).to(mixed.dtype))
        return observe(self, "linear", normed, self.out_proj(normed))

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """One system per inner channel, as `x` selects it, driven by the convolution's output."""
        _, v, dt = self._projected(x)
        u, delta, A, B, C, D = self._select(self._convolved(v), dt)
        decay, delta = (
            M.repeat_interleave(self.headdim, 2)[..., None] for M in (torch.exp(delta * A), delta)
        )
        return Recurrence(
            A=decay.expand(*decay.shape[:3], self.config.d_state),
            B=(delta * B[:, :, None])[..., None],
            C=C[:, :, None, None],
            D=D.repeat_interleave(self.headdim)[:, None, None],
            u=u,
        )

    def initial_state(self, batch_size: int) -> Mamba2State:
        """No inputs yet, and a state of zero."""
        taps, mixed = self.config.d_conv - 1, self.d_inner + 2 * self.config.d_state
        sizes = batch_size, self.heads, self.headdim, self.config.d_state
        return Mamba2State(
            self.D.new_zeros(batch_size, taps, mixed),
            self.D.new_zeros(*sizes, dtype=self._state_dtype()),
        )

    def step(
        self, x: Float[Tensor, "batch d_model"], state: Mamba2State
    ) -> tuple[Float[Tensor, "batch d_model"], Mamba2State]:
        """One time step."""
        z, v, dt = self._projected(x[:, None])
        window = torch.cat([state.window, v], 1)
        taps = rearrange(self.conv1d.weight, "mixed 1 taps -> taps mixed")
        assert self.conv1d.bias is not None
        mixed = F.silu((window * taps).sum(1) + self.conv1d.bias)
        u, delta, A, B, C, D = self._select(mixed[:, None], dt)
        u = self._by_head(u)[:, 0]
        driven = (delta[:, 0, :, None] * u)[..., None] * B[:, :, None]
        h = torch.exp(delta[:, 0] * A)[..., None, None] * state.h + driven
        y = ((h * C[:, :, None]).sum(-1) + D[:, None] * u).flatten(1).to(mixed.dtype)
        y = y if self.scaling is None else self.scaling(y)
        y = self._normed(y * F.silu(z[:, 0])).to(mixed.dtype)
        return self.out_proj(y), Mamba2State(window[:, 1:], h)

    def roles(self) -> Mapping[str, Role]:
        """A and the step sizes' bias are dynamics, the skip is a gain."""
        return {"A_log": "dynamics", "dt_bias": "dynamics", "D": "gain", "norm.weight": "norm"}

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, what the convolution reads, and raw step sizes."""
        inner = self.d_inner
        z, v, dt = self.in_proj(x).split([inner, inner + 2 * self.config.d_state, self.heads], -1)
        return z, v, dt

    def _convolved(self, v: Tensor) -> Tensor:
        """silu(conv(v))."""
        assert self.conv1d.bias is not None
        return short_convolution(v, self.conv1d.weight[:, 0], self.conv1d.bias)

    def _select(self, mixed: Tensor, dt: Tensor) -> _Selected:
        """The system at every step, in at least float32 and with autocast off."""
        dtype, state = self._state_dtype(), self.config.d_state
        with torch.autocast(mixed.device.type, enabled=False):
            u, B, C = mixed.to(dtype).split([self.d_inner, state, state], -1)
            A = self._prepared((dtype, dt.device), lambda: -torch.exp(self.A_log.to(dtype)))
            delta = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
            return _Selected(u, delta, A, B, C, self.D.to(dtype))

    def _by_head(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (self.heads, self.headdim))

    def _normed(self, y: Tensor) -> Tensor:
        """The norm of the gated output, in at least float32."""
        with torch.autocast(y.device.type, enabled=False):
            dtype = self._state_dtype()
            weight = self.norm.weight.to(dtype)
            return F.rms_norm(y.to(dtype), self.norm.normalized_shape, weight, self.norm.eps)

    def _state_dtype(self) -> torch.dtype:
        return torch.promote_types(self.A_log.dtype, torch.float32)


def _initial(config: Mamba2Config, heads: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """log(-A), and the b at which softplus(b) is the step size, for every head."""
    if config.initial == "normal":
        return noise.fork("A").normal(heads, std=0.1), noise.fork("dt").normal(heads, std=0.1)
    A = noise.fork("A").uniform(heads, low=1.0, high=16.0)
    low, high = (math.log(dt) for dt in config.step_sizes)
    log_dt = noise.fork("dt").uniform(heads, low=low, high=high, dtype=torch.float64)
    dt = log_dt.exp().clamp(min=1e-4)
    return A.log(), (dt + torch.log(-torch.expm1(-dt))).float()
