"""S4 (gu2022efficiently): per channel a HiPPO system, diagonal minus rank one."""

from collections.abc import Mapping
from typing import Annotated

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
from robustssm.ops.discretize import bilinear_low_rank, low_rank_matrix, real_pairs
from robustssm.ops.hippo import legs_low_rank
from robustssm.ops.low_rank import low_rank_response
from robustssm.ops.recurrence import Recurrence


@register("s4")
@settings
class S4Config(LayerConfig):
    """Settings of S4.

    `ssm_copies` sets of (A, B, P) serve the channels in turn (None: one set per channel). With
    `trainable_real=False`, as in the code of qi2024exploring, Re A stays at its initial -1/2.

    Source: gu2022efficiently, section 3; in qi2024exploring d_state is 64 (CIFAR-10), 32 (MNIST).
    """

    d_state: Annotated[int, pydantic.Field(ge=2)] = 64
    dt_min: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    dt_max: Annotated[float, pydantic.Field(gt=0)] = 1e-1
    ssm_copies: Annotated[int, pydantic.Field(ge=1)] | None = 1
    trainable_real: bool = False
    scaling: AdaptiveScalingConfig | None = None

    def __post_init__(self) -> None:
        check_ssm("S4Config", self.d_state, self.dt_min, self.dt_max)

    def build(self, *, d_model: int, length: int, noise: Noise) -> "S4":
        """Makes the layer; any `length` gives the same one.

        Raises:
            ValueError: If `ssm_copies` does not divide `d_model`.
        """
        check_copies("S4Config", self.ssm_copies or d_model, d_model)
        return S4(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple["S4Config", ...]:
        """The default; trained real parts, shared and not, with adaptive scaling."""
        return (
            cls(d_state=8),
            cls(d_state=4, ssm_copies=2, trainable_real=True),
            cls(d_state=2, ssm_copies=None, scaling=AdaptiveScalingConfig(activation="tanh")),
        )


class S4(SteppedConvolutionalLayer):
    """h' = (diag(a) - P P^*) h + B u, y = 2 Re(C h) + D u, discretised by the trapezoidal rule.

    C itself is the parameter, so the layer is one system at every sequence length. (The official
    code trains C (I - A^L) for one fixed L, which its kernel algorithm needs.) The kernel comes
    from running the system, diagonal plus rank one, not from Cauchy products: that is faster, and
    more accurate in float32 (3e-6 of the largest tap against 1e-5);
    `ops.structured.cauchy_generating_function` is the other way, and the oracle.

    Source: gu2022efficiently, sections 3.2 and 3.4. Oracle: the official code (tests/data).
    """

    def __init__(self, config: S4Config, *, d_model: int, noise: Noise):
        """Made by `S4Config.build`."""
        super().__init__(d_model=d_model, scaling=config.scaling, noise=noise)
        self.config = config
        copies = config.ssm_copies or d_model
        a, P, B = (v.to(torch.complex64).expand(copies, -1) for v in legs_low_rank(config.d_state))
        self.log_dt = log_steps(noise.fork("dt"), d_model, config.dt_min, config.dt_max)
        decay = torch.log(-a.real)
        if config.trainable_real:
            self.log_decay = nn.Parameter(decay)
        else:
            self.register_buffer("log_decay", decay)
        self.frequency = nn.Parameter(a.imag.clone())
        self.P = nn.Parameter(torch.view_as_real(P.resolve_conj()).clone())
        self.B = nn.Parameter(torch.view_as_real(B.resolve_conj()).clone())
        self.C = normal_pairs(noise.fork("C"), d_model, config.d_state // 2)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "d_model length"]:
        """What channel c answers to a unit at time 0, K[c, t], without the skip D; in `dtype`."""
        e, q, r, b = self._discretised()
        return low_rank_response(e, q, r, b, as_complex(self.C, torch.float64), length, dtype=dtype)

    def system(self, *, dtype: torch.dtype = torch.float32) -> Recurrence:
        """The discretised system in real coordinates sqrt(2) (Re h, Im h), so d_state of them."""
        e, q, r, b = self._discretised()
        C = real_pairs(as_complex(self.C, torch.float64).conj())
        return Recurrence(
            A=low_rank_matrix(e, q, r).to(dtype)[None, None],
            B=real_pairs(b).to(dtype)[None, None, ..., None],
            C=C.to(dtype)[None, None, :, None],
            D=self.D.to(dtype)[:, None, None],
        )

    def roles(self) -> Mapping[str, Role]:
        """Step sizes, A, B and P are dynamics; the skip is a gain."""
        roles: dict[str, Role] = {"log_dt": "dynamics", "frequency": "dynamics", "P": "dynamics"}
        roles |= {"B": "dynamics", "D": "gain"}
        if self.config.trainable_real:
            roles["log_decay"] = "dynamics"
        return roles

    def _discretised(self) -> tuple[Tensor, ...]:
        """e, q, r and b of `bilinear_low_rank`, (d_model, pairs), in complex128."""
        a = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        a, P, B = (
            per_channel(v, self.d_model)
            for v in (a, as_complex(self.P, torch.float64), as_complex(self.B, torch.float64))
        )
        return bilinear_low_rank(a, P, B, self.log_dt.double().exp())
