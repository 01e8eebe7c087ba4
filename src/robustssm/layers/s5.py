"""S5 (smith2023simplified): one diagonal system with many inputs and outputs."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.observation import observe
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import CausalLayer, LayerConfig, Role
from robustssm.layers.preparation import Preparing
from robustssm.ops.discretize import zero_order_hold
from robustssm.ops.hippo import legs
from robustssm.ops.mimo import mimo_scan
from robustssm.ops.recurrence import Recurrence

_EDGE = math.erf(2 / math.sqrt(2))  # P(|N(0, 1)| < 2)
_TRUNCATED_STD = 0.8796256610342398  # of N(0, 1) cut off at 2 deviations


@register("s5")
@settings
class S5Config(LayerConfig):
    """Settings of an S5 layer: the bare system, without activation or feed-forward map.

    qi2024exploring uses d_state 128, conjugate_symmetric False and initial "s5_pytorch".

    Source: smith2023simplified, section 3 and appendix B.1.
    """

    d_state: Annotated[int, Field(ge=1)] = 64
    """Size of the real system; with conjugate_symmetric half as many complex states are stored."""
    conjugate_symmetric: bool = True
    """True as in the paper: one state of each conjugate pair, y = 2 Re(C h). False as in
    s5-pytorch: all states, free of one another, y = Re(C h)."""
    blocks: Annotated[int, Field(ge=1)] = 1
    """Equal HiPPO-N blocks that A starts from."""
    real_part: Literal["free", "negative"] = "free"
    """Of the eigenvalues: "free" as published, or kept negative as -exp of a parameter."""
    dt_min: Annotated[float, Field(gt=0)] = 1e-3
    dt_max: Annotated[float, Field(gt=0)] = 1e-1
    initial: Literal["jax", "s5_pytorch"] = "jax"
    """Draws of B, C and D. "jax", the authors' code: variances 1 / d_state, D normal. "s5_pytorch",
    a port: C of variance 0.6 / (d_state d_model) and B of 0.6 / d_state, D uniform in [0, 1]."""
    scaling: AdaptiveScalingConfig | None = None
    """Adaptive scaling of the output."""

    def __post_init__(self) -> None:
        unit = 2 * self.blocks if self.conjugate_symmetric else self.blocks
        if self.d_state % unit:
            why = "2 * blocks, as states come in pairs" if self.conjugate_symmetric else "blocks"
            raise ValueError(
                f"`S5Config(d_state=...)` must be a multiple of {why}; got d_state={self.d_state} "
                f"and blocks={self.blocks}. Try d_state={unit * max(1, self.d_state // unit)}."
            )
        if self.dt_min > self.dt_max:
            raise ValueError(
                f"`S5Config(dt_min=...)` must be at most dt_max; got {self.dt_min} and "
                f"{self.dt_max}. Swap them."
            )

    def build(self, *, d_model: int, length: int, noise: Noise) -> "S5":
        """Makes the layer in float32 on the CPU; any length will do."""
        del length
        return S5(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """Both spectra, blocks, stable eigenvalues and adaptive scaling."""
        return (
            cls(),
            cls(d_state=5, conjugate_symmetric=False, initial="s5_pytorch"),
            cls(d_state=8, blocks=2, real_part="negative", scaling=AdaptiveScalingConfig()),
        )


class _System(NamedTuple):
    """The discrete system h[t] = A h[t-1] + B u[t], y[t] = read(C h[t]) + D u[t]."""

    A: Complex[Tensor, " modes"]
    B: Complex[Tensor, "modes d_model"]
    C: Complex[Tensor, "d_model modes"]
    D: Float[Tensor, " d_model"]


class _Stacked(NamedTuple):
    """The system as `mimo_scan` takes it."""

    into: Float[Tensor, "rows d_model"]
    out: Float[Tensor, "rows d_model"]
    a: Complex[Tensor, " modes"]
    skip: Float[Tensor, " d_model"]


class S5State(NamedTuple):
    """The state and the system that it follows."""

    h: Complex[Tensor, "batch modes"]
    system: _System


class S5(Preparing, CausalLayer):
    """y = read(C h) + D u, h[t] = exp(A dt) h[t-1] + (exp(A dt) - 1) / A B u[t], every state alone.

    Complex parameters end in an axis of two, real and imaginary part. The system runs in at least
    float32.

    Source: smith2023simplified, sections 2.1 and 3. Oracle: scipy.signal (tests/layers/test_s5.py).
    """

    def __init__(self, config: S5Config, *, d_model: int, noise: Noise):
        """Made by `S5Config.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        eigenvalues, V = normal_legs(config.d_state // config.blocks)
        if config.conjugate_symmetric:
            half = len(eigenvalues) // 2
            eigenvalues, V = eigenvalues[half:], V[:, half:]
        A = torch.view_as_real(eigenvalues.repeat(config.blocks)).float()
        if config.real_part == "negative":
            A[:, 0] = torch.log(-A[:, 0])
        self.A = nn.Parameter(A)
        B, C, D = _initial_maps(config, d_model, noise)
        V = torch.block_diag(*[V] * config.blocks)
        self.B = nn.Parameter(torch.view_as_real(V.mH @ B.to(V.dtype)).float())
        self.C = nn.Parameter(torch.view_as_real(C @ V).float())
        self.D = nn.Parameter(D.float())
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        self.log_dt = nn.Parameter(noise.fork("dt").uniform(len(A), low=low, high=high))
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
            y = mimo_scan(x.to(system.skip.dtype), *system)
        y = observe(self, "ssm", x, y.to(x.dtype))
        return y if self.scaling is None else observe(self, "ads", y, self._scaled(y))

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """One group of d_model inputs and outputs."""
        del x
        with torch.autocast(self.A.device.type, enabled=False):
            A, B, C, D = self._system()
        return Recurrence(
            A=A[None, None, None],
            B=B[None, None, None],
            C=C[None, None, None],
            D=torch.diag(D)[None],
            conjugate_pairs=self.config.conjugate_symmetric,
        )

    def initial_state(self, batch_size: int) -> S5State:
        """Zeros, and the system that later steps will run."""
        system = self._system()
        return S5State(system.A.new_zeros(batch_size, len(self.A)), system)

    def step(
        self, x: Float[Tensor, "batch d_model"], state: S5State
    ) -> tuple[Float[Tensor, "batch d_model"], S5State]:
        """One time step."""
        A, B, C, D = state.system
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(D.dtype)
            h = A * state.h + u.to(B.dtype) @ B.T
            y = self._read() * (h @ C.T).real + D * u
        return self._scaled(y.to(x.dtype)), S5State(h, state.system)

    def roles(self) -> Mapping[str, Role]:
        """Eigenvalues, step sizes and B are dynamics; the skip is a gain."""
        return {**dict.fromkeys(("A", "log_dt", "B"), "dynamics"), "D": "gain"}

    def _system(self) -> _System:
        """The discrete system in at least float32."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        return self._prepared((dtype, self.A.device), lambda: self._make_system(dtype))

    def _make_system(self, dtype: torch.dtype) -> _System:
        # In float64, as it is small and an error of A grows with every step that A takes.
        real, imaginary = self.A.double().unbind(-1)
        if self.config.real_part == "negative":
            real = -torch.exp(real)
        B = torch.view_as_complex(self.B.double())
        dt = torch.exp(self.log_dt.double())
        A, B = zero_order_hold(torch.complex(real, imaginary)[None], B[None], dt[None])
        C = torch.view_as_complex(self.C.to(dtype))
        single = dtype.to_complex()
        return _System(A[0].to(single), B[0].to(single), C, self.D.to(dtype))

    def _stacked(self) -> _Stacked:
        """The same system, real matrices for `mimo_scan`."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)

        def make() -> _Stacked:
            A, B, C, D = self._make_system(dtype)
            out = self._read() * torch.cat([C.real.T, -C.imag.T])
            # A copy, as the parameter itself would ask for a gradient even if frozen.
            return _Stacked(torch.cat([B.real, B.imag]), out, A, D.clone())

        return self._prepared(("stacked", dtype, self.A.device), make)

    def _read(self) -> float:
        return 2.0 if self.config.conjugate_symmetric else 1.0

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.scaling is None else self.scaling(y)


def normal_legs(state: int) -> tuple[Complex[Tensor, " state"], Complex[Tensor, "state state"]]:
    """HiPPO-N, the normal part A + p p^T of LegS, p[n] = sqrt(n + 1/2), as V diag(eigenvalues) V^*.

    Columns of V are free up to a phase each; the one that makes V^* B positive, B the input vector
    of LegS, is taken: columns of conjugate eigenvalues are then conjugate.

    Args:
        state: Size of the matrix, at least 1.

    Returns:
        Eigenvalues -1/2 + i w by rising w, and V, unitary, both complex128.

    Source: smith2023simplified, appendix B.1.1; gu2022efficiently, theorem 1.
    """
    A, B = legs(state)
    p = B / math.sqrt(2)
    skew = A + torch.outer(p, p) + torch.eye(state, dtype=A.dtype) / 2
    frequencies, V = torch.linalg.eigh(-1j * skew)
    rotated = V.mH @ B.to(V.dtype)
    V = V * (rotated / rotated.abs())
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies), V


def _initial_maps(config: S5Config, d_model: int, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """B (d_state, d_model) and C (d_model, d_state) before the change of basis, and D."""
    state = config.d_state
    B = _truncated_normal(noise.fork("B"), state, d_model)
    C = torch.complex(
        *(_truncated_normal(noise.fork("C", part), d_model, state) for part in ("re", "im"))
    )
    if config.initial == "jax":
        D = noise.fork("D").normal(d_model)
        return B / math.sqrt(state), C / math.sqrt(state), D
    # The port multiplies by the truncated deviation where it should divide, and takes C's last axis
    # of size 2 for the channels of a convolution kernel: its fan-in is d_model * d_state.
    B = B * _TRUNCATED_STD**2 / math.sqrt(state)
    C = C * _TRUNCATED_STD**2 / math.sqrt(state * d_model)
    return B, C, noise.fork("D").uniform(d_model)


def _truncated_normal(noise: Noise, *shape: int) -> Tensor:
    """Normal draws cut off at two deviations, scaled back to variance 1, in float64."""
    unit = noise.uniform(*shape, low=-_EDGE, high=_EDGE, dtype=torch.float64)
    return math.sqrt(2) * torch.erfinv(unit) / _TRUNCATED_STD
