"""DSS (gupta2022diagonal): diagonal systems whose kernel is normalised over the sequence length."""

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
    ConvolutionalLayer,
    as_complex,
    check_ssm,
    log_steps,
    normal_pairs,
)
from robustssm.ops import hippo
from robustssm.ops.convolution import causal_convolution_reference
from robustssm.ops.recurrence import Recurrence
from robustssm.ops.structured import vandermonde_product

_RECIPROCAL = 1e-7  # keeps 1 / x finite at x = 0; part of the definition


@register("dss")
@settings
class DSSConfig(LayerConfig):
    """Settings of DSS in its softmax form: d_state / 2 complex modes, shared by all channels.

    Source: gupta2022diagonal, section 3; in qi2024exploring d_state is 64 (CIFAR-10), 32 (MNIST).
    """

    d_state: Annotated[int, pydantic.Field(ge=2)] = 64
    dt_min: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    dt_max: Annotated[float, pydantic.Field(gt=0)] = 1e-1
    scaling: AdaptiveScalingConfig | None = None

    def __post_init__(self) -> None:
        check_ssm("DSSConfig", self.d_state, self.dt_min, self.dt_max)

    def build(self, *, d_model: int, length: int, noise: Noise) -> "DSS":
        """Makes the layer; any `length` gives the same parameters."""
        return DSS(self, d_model=d_model, noise=noise)

    @classmethod
    def samples(cls) -> tuple["DSSConfig", ...]:
        """With and without adaptive scaling."""
        return cls(d_state=8), cls(d_state=4, scaling=AdaptiveScalingConfig(activation="tanh"))


class DSS(ConvolutionalLayer):
    """y = K * u + D u,  K[t] = Re sum of C[n] / w[n] softmax(z[n] 0, .., z[n] (L-1))[t].

    z = dt w, and the softmax, with complex exponents, is e^(z t) (e^z - 1) / (e^(z L) - 1). The
    reciprocal of x = w (e^(z L) - 1) is conj(x) / (|x|^2 + 1e-7). w is trained without constraint;
    where Re w > 0 the same fraction is written with e^(-z (L-1-t)), which cannot overflow. A mode
    is no conjugate pair here, so there is no factor 2.

    K depends on the length L of the sequence, also where the sequences begin alike: at different
    lengths this is not one system. So there is no `step`, and a `recurrence` is that of its own L.

    Source: gupta2022diagonal, proposition 1 and section 3.2; code of qi2024exploring. Theirs takes
        no gradient through the shift of the exponents where Re w > 0; this is the true gradient.
    """

    def __init__(self, config: DSSConfig, *, d_model: int, noise: Noise):
        """Made by `DSSConfig.build`."""
        super().__init__(d_model=d_model, scaling=config.scaling, noise=noise)
        self.config = config
        w = hippo.diagonal("legs", config.d_state // 2).to(torch.complex64)
        self.log_dt = log_steps(noise.fork("dt"), d_model, config.dt_min, config.dt_max)
        self.w = nn.Parameter(torch.view_as_real(w).clone())
        self.C = normal_pairs(noise.fork("C"), d_model, config.d_state // 2)

    def kernel(
        self, length: int, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "d_model length"]:
        """What channel c answers to a unit at time 0, K[c, t], without the skip D; in `dtype`."""
        c, z, growing = self._modes(length)
        stable = c.masked_fill(growing, 0).to(dtype.to_complex())
        K = vandermonde_product(stable, z.masked_fill(growing, 0).exp(), length)
        if not growing.any():
            return K
        unstable = c.masked_fill(~growing, 0).to(dtype.to_complex())
        backwards = vandermonde_product(unstable, (-z).masked_fill(~growing, 0).exp(), length)
        return K + backwards.flip(1)

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """The sums as they are written, for the length of `x`."""
        length = x.shape[1]
        c, z, growing = self._modes(length)
        lag = torch.arange(length, device=x.device) - growing[:, None].long() * (length - 1)
        K = (c[..., None] * torch.exp(z[..., None] * lag)).sum(1).real.to(x.dtype)
        return self._scale(causal_convolution_reference(x, K) + self.D * x)

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence:
        """The system that holds for the length of `x`, its states not in conjugate pairs.

        Where Re w > 0 it grows, and what reads it is as small as its states become large.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = x.shape[1]
        c, z, growing = self._modes(length)
        C = c * torch.exp(-z * (length - 1) * growing)
        ones = torch.ones(1, 1, 1, z.shape[1], 1, dtype=dtype.to_complex(), device=x.device)
        return Recurrence(
            A=z.exp().to(dtype.to_complex())[None, None],
            B=ones,
            C=C.to(dtype.to_complex())[None, None, :, None],
            D=self.D.to(dtype)[:, None, None],
        )

    def roles(self) -> Mapping[str, Role]:
        """Step sizes and w are dynamics; the skip is a gain."""
        return {"log_dt": "dynamics", "w": "dynamics", "D": "gain"}

    def _modes(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients c and exponents z, (d_model, modes), complex128; where Re w > 0, (modes,).

        K[t] = Re sum of c e^(z t), or of c e^(z (t - (length - 1))) for the growing modes.
        """
        w = as_complex(self.w, torch.float64)
        growing = w.real > 0
        z = self.log_dt.double().exp()[:, None] * w
        decaying = torch.where(growing, -z, z)
        x = torch.expm1(decaying * length) * w
        reciprocal = x.conj() / (x.real.square() + x.imag.square() + _RECIPROCAL)
        c = as_complex(self.C, torch.float64) * torch.expm1(decaying) * reciprocal
        return c, z, growing
