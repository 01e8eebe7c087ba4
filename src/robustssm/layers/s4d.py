"""S4D (gu2022parameterization): per channel a diagonal system, run as a convolution."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.rng import Noise
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.base import LayerConfig, Role
from robustssm.layers.convolutional import (
    SteppedConvolutionalLayer,
    as_complex,
    check_copies,
    check_ssm,
    log_steps,
    normal_pairs,
    per_channel,
)
from robustssm.ops import hippo
from robustssm.ops.discretize import bilinear, zero_order_hold
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.structured import vandermonde_product


@register("s4d")
@settings
class S4DConfig(LayerConfig):
    """Settings of S4D.

    `initial` names the eigenvalues of A (`ops.hippo.diagonal`). `ssm_copies` sets of them serve the
    channels in turn (None: one set per channel).

    Source: gu2022parameterization, section 4.
    """

    d_state: Annotated[int, pydantic.Field(ge=2)] = 64
    initial: Literal["lin", "inv", "legs", "real"] = "lin"
    discretization: Literal["zoh", "bilinear"] = "zoh"
    dt_min: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    dt_max: Annotated[float, pydantic.Field(gt=0)] = 1e-1
    ssm_copies: Annotated[int, pydantic.Field(ge=1)] | None = None
    scaling: AdaptiveScalingConfig | None = None

    def __post_init__(self) -> None:
        check_ssm("S4DConfig", self.d_state, self.dt_min, self.dt_max)

    def build(self, *, d_model: int, length: int, noise: Noise) -> "S4D":
        """Makes the layer; any `length` gives the same one.

        Raises:
            ValueError: If `ssm_copies` does not divide `d_model`.
        """
        check_copies("S4DConfig", self.ssm_copies or d_model, d_model)
        return S4D(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple["S4DConfig", ...]:
        """Every initial spectrum and both discretisations."""
        return (
            cls(d_state=8),
            cls(d_state=8, initial="inv", discretization="bilinear", ssm_copies=1),
            cls(d_state=6, initial="legs", ssm_copies=2),
            cls(d_state=4, initial="real", scaling=AdaptiveScalingConfig(activation="sigmoid")),
        )


class S4D(SteppedConvolutionalLayer):
    """h' = diag(a) h + u, y = 2 Re(C h) + D u with a = -exp(log_decay) + i frequency.

    B is 1: in a diagonal system only the product C B matters.

    Source: gu2022parameterization, section 3 and listing 1. Oracle: the official code (tests/data).
    """

    def __init__(self, config: S4DConfig, *, d_model: int, noise: Noise):
        """Made by `S4DConfig.build`."""
        super().__init__(d_model=d_model, scaling=config.scaling, noise=noise)
        self.config = config
        copies, pairs = config.ssm_copies or d_model, config.d_state // 2
        a = hippo.diagonal(config.initial, pairs).to(torch.complex64).repeat(copies, 1)
        self.log_dt = log_steps(noise.fork("dt"), d_model, config.dt_min, config.dt_max)
        self.log_decay = nn.Parameter(torch.log(-a.real))
        self.frequency = nn.Parameter(a.imag.clone())
        self.C = normal_pairs(noise.fork("C"), d_model, pairs)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "d_model length"]:
        """What channel c answers to a unit at time 0, K[c, t], without the skip D; in `dtype`."""
        A, B = self._discretised()
        c = 2 * as_complex(self.C, torch.float64) * B
        return vandermonde_product(c.to(dtype.to_complex()), A, length)

    def system(self, *, dtype: torch.dtype = torch.float32) -> Recurrence:
        """The discretised system, its states standing for conjugate pairs."""
        A, B = (M.to(dtype.to_complex()) for M in self._discretised())
        return Recurrence(
            A=A[None, None],
            B=B[None, None, ..., None],
            C=as_complex(self.C, dtype)[None, None, :, None],
            D=self.D.to(dtype)[:, None, None],
            conjugate_pairs=True,
        )

    def roles(self) -> Mapping[str, Role]:
        """Step sizes and A are dynamics; the skip is a gain."""
        return {
            "log_dt": "dynamics",
            "log_decay": "dynamics",
            "frequency": "dynamics",
            "D": "gain",
        }

    def _discretised(self) -> tuple[Tensor, Tensor]:
        """A and B, (d_model, pairs), in complex128, as their errors would be taken to powers."""
        a = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        a, dt = per_channel(a, self.d_model), self.log_dt.double().exp()[:, None]
        hold = zero_order_hold if self.config.discretization == "zoh" else bilinear
        A, B = hold(a, torch.ones_like(a)[..., None], dt)
        return A, B[..., 0]
