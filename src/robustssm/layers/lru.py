"""The linear recurrent unit (orvieto2023resurrecting): a diagonal system that is always stable."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.observation import observe
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, LayerConfig, Role
from robustssm.layers.convolutional import SteppedConvolutionalLayer, as_complex
from robustssm.layers.preparation import Preparing
from robustssm.ops.mimo import mimo_scan
from robustssm.ops.recurrence import Recurrence


@register("lru")
@settings
class LRUConfig(LayerConfig):
    """Settings of an LRU: the bare system, without activation or feed-forward map.

    Eigenvalues start uniform over the ring between the radii `r_min` and `r_max`, their phases over
    [0, `max_phase`].

    Source: orvieto2023resurrecting, section 3 and appendix A; slutzky2024implicit's victim has
    form "channelwise".
    """

    d_state: Annotated[int, Field(ge=1)] = 64
    """Complex states: of the one system (mimo), or of every channel's (channelwise)."""
    form: Literal["mimo", "channelwise"] = "mimo"
    """As published, all channels drive one system through full matrices B and C; or every channel
    has a system of its own, with B and C of its own and the eigenvalues of all the others."""
    r_min: Annotated[float, Field(ge=0, lt=1)] = 0.0
    r_max: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_phase: Annotated[float, Field(gt=0)] = 6.28
    scaling: AdaptiveScalingConfig | None = None
    """Adaptive scaling of the output."""

    def __post_init__(self) -> None:
        if self.r_min > self.r_max:
            got = f"{self.r_min} > {self.r_max}"
            subject = "`LRUConfig(r_min=..., r_max=...)`"
            raise ValueError(violation(subject, "have r_min <= r_max", got, "Swap them."))

    def build(self, *, d_model: int, length: int, noise: Noise) -> "LRU | ChannelwiseLRU":
        """Makes the layer in float32 on the CPU; any length will do."""
        del length
        make = LRU if self.form == "mimo" else ChannelwiseLRU
        return make(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Both forms, a narrow ring and adaptive scaling."""
        return (
            cls(d_state=8),
            cls(d_state=8, form="channelwise"),
            cls(d_state=5, r_min=0.9, r_max=0.99, scaling=AdaptiveScalingConfig()),
            cls(
                d_state=5,
                form="channelwise",
                max_phase=0.3,
                scaling=AdaptiveScalingConfig(activation="tanh"),
            ),
        )


class _System(NamedTuple):
    """The system h[t] = A h[t-1] + B u[t], y[t] = Re(C h[t]) + D u[t]."""

    A: Complex[Tensor, " modes"]
    B: Complex[Tensor, "modes d_model"]
    C: Complex[Tensor, "d_model modes"]
    D: Float[Tensor, " d_model"]


class LRUState(NamedTuple):
    """The state and the system that it follows."""

    h: Complex[Tensor, "batch modes"]
    system: _System


class LRU(Preparing, CausalLayer):
    """y = Re(C h) + D u, h[t] = A h[t-1] + exp(gamma_log) B u[t], A = exp(-exp(nu) + i exp(theta)).

    |A| < 1 whatever nu and theta are (where 1 - |A| is below the precision in use: <= 1, rounded).
    gamma starts at sqrt(1 - |A|^2), which gives every state the variance of its input when the
    inputs are white, and is trained from there. B and C end in an axis of two, real and imaginary
    part. The system runs in at least float32.

    Source: orvieto2023resurrecting, section 3.
    Oracle: a loop over its formulas (tests/layers/test_lru.py).
    """

    def __init__(self, config: LRUConfig, *, d_model: int, noise: Noise):
        """Made by `LRUConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        states = config.d_state
        self.nu_log, self.theta_log = _ring(config, noise)
        decay = torch.exp(-2 * torch.exp(self.nu_log.detach().double()))
        self.gamma_log = nn.Parameter((torch.log1p(-decay) / 2).float())
        self.B = _pairs(noise.fork("B"), states, d_model, std=(2 * d_model) ** -0.5)
        self.C = _pairs(noise.fork("C"), d_model, states, std=states**-0.5)
        self.D = nn.Parameter(noise.fork("D").normal(d_model))
        self.scaling = (
            config.scaling.build(d_model=d_model, noise=noise.fork("scaling"))
            if config.scaling
            else None
        )

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape: two real matrix products and a scan."""
        with torch.autocast(x.device.type, enabled=False):
            system = self._stacked()
            y = mimo_scan(x.to(self._dtype()), *system)
        y = observe(self, "ssm", x, y.to(x.dtype))
        return y if self.scaling is None else observe(self, "ads", y, self.scaling(y))

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """One group of d_model inputs and outputs."""
        del x
        A, B, C, D = self._system()
        return Recurrence(
            A=A[None, None, None],
            B=B[None, None, None],
            C=C[None, None, None],
            D=torch.diag(D)[None],
        )

    def initial_state(self, batch_size: int) -> LRUState:
        """Zeros, and the system that later steps will run."""
        system = self._system()
        return LRUState(system.A.new_zeros(batch_size, len(system.A)), system)

    def step(
        self, x: Float[Tensor, "batch d_model"], state: LRUState
    ) -> tuple[Float[Tensor, "batch d_model"], LRUState]:
        """One time step."""
        A, B, C, D = state.system
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(D.dtype)
            h = A * state.h + u.to(B.dtype) @ B.T
            y = ((h @ C.T).real + D * u).to(x.dtype)
        return y if self.scaling is None else self.scaling(y), LRUState(h, state.system)

    def roles(self) -> Mapping[str, Role]:
        """Eigenvalues, the norm of the inputs and B are dynamics; the skip is a gain."""
        names = ("nu_log", "theta_log", "gamma_log", "B")
        return {**dict.fromkeys(names, "dynamics"), "D": "gain"}

    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.D.dtype, torch.float32)

    def _system(self) -> _System:
        """The system in at least float32."""
        dtype = self._dtype()
        return self._prepared((dtype, self.D.device), lambda: self._make_system(dtype))

    def _make_system(self, dtype: torch.dtype) -> _System:
        # In float64, as it is small and an error of A grows with every step that A takes.
        gamma = torch.exp(self.gamma_log.double())[:, None]
        single = dtype.to_complex()
        return _System(
            _logarithms(self.nu_log, self.theta_log).exp().to(single),
            (gamma * as_complex(self.B, torch.float64)).to(single),
            as_complex(self.C, dtype),
            self.D.to(dtype),
        )

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same system, real matrices for `mimo_scan`."""
        dtype = self._dtype()

        def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            A, B, C, D = self._make_system(dtype)
            # A copy, as the parameter itself would ask for a gradient even if frozen.
            out = torch.cat([C.real.T, -C.imag.T])
            return torch.cat([B.real, B.imag]), out, A, D.clone()

        return self._prepared(("stacked", dtype, self.D.device), make)


class ChannelwiseLRU(SteppedConvolutionalLayer):
    """y[c] = Re(sum of C[c, n] h[c, n]) + D[c] u[c], h[c, n] following A[n] h[c, n] + B[c, n] u[c].

    The eigenvalues A of an LRU, shared by all channels; no norm of the inputs, and no matrix
    between channels. A convolution with K[c, l] = Re(sum over n of C[c, n] B[c, n] A[n]^l).

    Source: orvieto2023resurrecting, section 3, for A; slutzky2024implicit, whose LRU this is.
    Oracle: a loop over its formulas (tests/layers/test_lru.py).
    """

    def __init__(self, config: LRUConfig, *, d_model: int, noise: Noise):
        """Made by `LRUConfig.build`."""
        super().__init__(d_model=d_model, scaling=config.scaling, noise=noise)
        self.config = config
        states = config.d_state
        self.nu_log, self.theta_log = _ring(config, noise)
        self.B = _pairs(noise.fork("B"), d_model, states, std=(2 * states) ** -0.5)
        self.C = _pairs(noise.fork("C"), d_model, states, std=states**-0.5)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "d_model length"]:
        """What channel c answers to a unit at time 0, K[c, t], without the skip D; in `dtype`."""
        c = as_complex(self.C, torch.float64) * as_complex(self.B, torch.float64)
        powers = _powers(_logarithms(self.nu_log, self.theta_log), length)
        # Re(c p) is the dot product of (Re c, Im c) with (Re p, -Im p).
        left, right = torch.cat([c.real, c.imag], 1), torch.cat([powers.real, -powers.imag])
        return left.to(dtype) @ right.to(dtype)

    def system(self, *, dtype: torch.dtype = torch.float32) -> Recurrence:
        """One system per channel."""
        A = _logarithms(self.nu_log, self.theta_log).exp().to(dtype.to_complex())
        return Recurrence(
            A=A[None, None, None],
            B=as_complex(self.B, dtype)[None, None, ..., None],
            C=as_complex(self.C, dtype)[None, None, :, None],
            D=self.D.to(dtype)[:, None, None],
        )

    def roles(self) -> Mapping[str, Role]:
        """Eigenvalues are dynamics; the skip is a gain."""
        return {"nu_log": "dynamics", "theta_log": "dynamics", "D": "gain"}


def _logarithms(
    nu_log: Float[Tensor, " modes"], theta_log: Float[Tensor, " modes"]
) -> Complex[Tensor, " modes"]:
    """-exp(nu_log) + i exp(theta_log), the logarithms of the eigenvalues, in complex128."""
    # exp(-exp(50)) is 0 already, while infinity times lag 0 would be none.
    decay = nu_log.double().clamp(max=50).exp()
    return torch.complex(-decay, theta_log.double().exp())


def _powers(logarithms: Complex[Tensor, " modes"], length: int) -> Complex[Tensor, "modes length"]:
    """exp(logarithm)^l for l below `length`, as products of fewer exponentials."""
    size = math.isqrt(length - 1) + 1
    lag = torch.arange(size, dtype=torch.float64, device=logarithms.device)
    fine, coarse = (torch.exp(logarithms[:, None] * lag * step) for step in (1, size))
    return (coarse[:, :, None] * fine[:, None]).flatten(1)[:, :length]


def _ring(config: LRUConfig, noise: Noise) -> tuple[nn.Parameter, nn.Parameter]:
    """Logarithms of -log |A| and of the phase of A, A uniform over the ring."""
    inner, outer = config.r_min**2, config.r_max**2
    radius = noise.fork("radius")
    squared = radius.uniform(config.d_state, low=inner, high=outer, dtype=torch.float64)
    squared = squared.clamp(max=1 - 2**-53)  # a draw below 1 could round to it
    phase = noise.fork("phase").uniform(config.d_state, high=config.max_phase, dtype=torch.float64)
    nu_log = torch.log(-torch.log(squared) / 2)
    return nn.Parameter(nu_log.float()), nn.Parameter(phase.log().float())


def _pairs(noise: Noise, *shape: int, std: float) -> nn.Parameter:
    """Complex numbers with normal parts, each of deviation `std`, stored as (..., 2) reals."""
    return nn.Parameter(noise.normal(*shape, 2, std=std))
