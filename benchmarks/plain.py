"""The same mathematics as the published code writes it: what our forms are measured against.

Kernels come from the full tables of Cauchy quotients or exponentials and are made anew in every
forward pass; convolutions are torch's transforms on transposed views; gradients are autograd's. It
stands in for the code of qi2024exploring where there is no checkout of it, and agrees with our
layers in float64 (tests/benchmarks/test_plain.py).

Legend: h channel, n state pair, l lag, f frequency.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.layers.dss import DSS
from robustssm.layers.s4 import S4
from robustssm.models.block import Block
from robustssm.models.classifier import SequenceClassifier


def convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of (batch, length, channels) by transforms of twice the length."""
    rows, length = u.transpose(1, 2), u.shape[1]
    spectrum = torch.fft.rfft(rows, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)


def cauchy_product(v: Tensor, z: Tensor, a: Tensor) -> Tensor:
    """Sum over n of v / (z - a) and of the same with v and a conjugate, by a table (.., n, f)."""
    v, a = torch.cat([v, v.conj()], -1), torch.cat([a, a.conj()], -1)
    return (v[..., None] / (z - a[..., None])).sum(-2)


def s4_spectrum(a: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Transform (h, f) of the kernel of diag(a) - P P^*, trapezoidal rule, by Cauchy tables.

    Source: gu2022efficiently, section 3.2, with its division by 1 + w.
    """
    w = _circle(length, dt)
    z = 2 * (1 - w) / (1 + w)
    a, P, B = (value.expand_as(C) for value in (a, P, B))
    Q, step = P.conj(), dt[:, None]
    v = torch.stack([torch.stack([B * C, B * Q]), torch.stack([P * C, P * Q])])
    r = cauchy_product(v, z, step * a) * step
    return (r[0, 0] - r[0, 1] * r[1, 0] / (1 + r[1, 1])) * 2 / (1 + w)


def s4_kernel(a: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Kernel (h, l) of that system, if C stands for C (I - A^length)."""
    return torch.fft.irfft(s4_spectrum(a, P, B, C, dt, length), n=length)


def truncated(a: Tensor, P: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """C (I - A^length), which the Cauchy form needs; by dense matrices in complex128."""
    a, P, C = (v.to(torch.complex128).expand(C.shape) for v in (a, P, C))
    a, P, both = (torch.cat([v, v.conj()], -1) for v in (a, P, C))
    half = dt.double()[:, None, None] / 2 * (torch.diag_embed(a) - P[..., None] * P.conj()[:, None])
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    power = torch.linalg.matrix_power(torch.linalg.solve(eye - half, eye + half), length)
    return (both - (both[:, None] @ power)[:, 0])[:, : C.shape[1]]


def exponential_kernel(c: Tensor, z: Tensor, length: int) -> Tensor:
    """Re sum over n of c exp(z l), by the table (h, n, l) of exponentials."""
    lag = torch.arange(length, device=z.device)
    return torch.einsum("hn,hnl->hl", c, torch.exp(z[..., None] * lag)).real


def s4d_kernel(a: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Kernel (h, l) of a diagonal system, zero-order hold, B = 1, states in conjugate pairs."""
    z = a * dt[:, None]
    return 2 * exponential_kernel(C * (torch.exp(z) - 1) / a, z, length)


def dss_kernel(w: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Kernel (h, l) normalised over the length, for Re w <= 0.

    Source: gupta2022diagonal, proposition 1.
    """
    z = w * dt[:, None]
    x = (torch.exp(z * length) - 1) * w
    reciprocal = x.conj() / (x * x.conj() + 1e-7)
    return exponential_kernel(C * (torch.exp(z) - 1) * reciprocal, z, length)


def moving_average(
    x: Tensor, delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor
) -> Tensor:
    """Mega's average in both directions and its skip, by one transform of length 2 (2 L - 1).

    Source: ma2023mega, section 3 and its released code. Parameters are (2, h, n), omega is (h,).
    """
    length = x.shape[1]
    p = torch.sigmoid(delta)
    q = 1 - p * torch.sigmoid(alpha)
    powers = torch.exp(torch.log(q)[..., None] * torch.arange(length))
    weights = p * beta * gamma / math.sqrt(p.shape[-1])
    ahead, behind = torch.einsum("dhn,dhnl->dhl", weights, powers)
    pad = length - 1
    kernel = F.pad(ahead, (pad, 0)) + F.pad(behind.flip(-1), (0, pad))
    rows, size = F.pad(x.transpose(1, 2), (pad, 0)), 2 * (2 * length - 1)
    spectrum = torch.fft.rfft(kernel, n=size) * torch.fft.rfft(rows, n=size)
    both = torch.fft.irfft(spectrum, n=size)[..., 2 * pad : 2 * pad + length]
    return both.transpose(1, 2) + omega * x


class Layer(nn.Module):
    """S4 or DSS: kernel, convolution and skip in every forward pass, on transposed views."""

    log_dt: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter
    w: nn.Parameter
    """Of DSS."""
    log_decay: Tensor
    frequency: nn.Parameter
    P: nn.Parameter
    B: nn.Parameter
    """Of S4, as the three above."""

    def __init__(self, layer: nn.Module, length: int):
        """Takes copies of the parameters; of S4's C for that length.

        Raises:
            ValueError: If the layer has adaptive scaling or is of another kind.
        """
        super().__init__()
        if not isinstance(layer, S4 | DSS) or layer.scaling is not None:
            raise ValueError(
                "A plain layer must be S4 or DSS without adaptive scaling; got "
                f"'{type(layer).__name__}'. Choose another structure."
            )
        self.structure = "s4" if isinstance(layer, S4) else "dss"
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer.clone())
        if self.structure == "s4":
            with torch.no_grad():
                a, P, _, C = self._complex()
                made = truncated(a, P, C, self.log_dt.double().exp(), length)
                self.C.copy_(torch.view_as_real(made))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, length, channels) to the same shape."""
        return convolution(x, self.kernel(x.shape[1])) + self.D * x

    def kernel(self, length: int) -> Tensor:
        """The kernel, (channels, length)."""
        dt = self.log_dt.exp()
        if self.structure == "s4":
            return s4_kernel(*self._complex(), dt, length)
        return dss_kernel(torch.view_as_complex(self.w), torch.view_as_complex(self.C), dt, length)

    def _complex(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, P, B and C."""
        a = torch.complex(-self.log_decay.exp(), self.frequency)
        P, B, C = (torch.view_as_complex(value) for value in (self.P, self.B, self.C))
        return a, P, B, C


class Classifier(nn.Module):
    """The released code's model: affine maps between LayerNorms after every residual sum."""

    def __init__(self, model: SequenceClassifier):
        """Takes copies of the weights of a `released_code` classifier of S4 or DSS."""
        super().__init__()
        self.cut = model.config.tokens.tokens
        length = model.config.tokens.length(model.shape)
        self.input, self.head = _copy_linear(model.input), _copy_linear(model.head)
        self.input_norm = _copy_norm(model.input_norm)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.layers = nn.ModuleList(Layer(block.layer, length) for block in blocks)
        self.mixings = nn.ModuleList(_copy_linear(block.mixing) for block in blocks)
        self.norms = nn.ModuleList(_copy_norm(block.norm) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits."""
        h = self.input_norm(self.input(self.cut(x)))
        for layer, mixing, norm in zip(self.layers, self.mixings, self.norms, strict=True):
            h = norm(h + mixing(layer(h)))
        return self.head(h.mean(1))

    def parameters_as_ours(self) -> dict[str, nn.Parameter]:
        """The parameters under the names that they have in our classifier."""
        renamed = {}
        for name, parameter in self.named_parameters():
            kind, _, rest = name.partition(".")
            if kind in ("layers", "mixings", "norms"):
                number, _, rest = rest.partition(".")
                name = f"blocks.{number}.{kind[:-1]}.{rest}"
            renamed[name] = parameter
        return renamed


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    start: Tensor,
    eps: float,
    step: float,
    steps: int,
) -> Tensor:
    """Steps of the sign of the gradient from `start`, projected onto the ball and onto [0, 1]."""
    points = start
    for _ in range(steps):
        points = points.detach().requires_grad_()
        loss = F.cross_entropy(model(points), y)
        (gradient,) = torch.autograd.grad(loss, points)
        moved = points.detach() + step * gradient.sign()
        points = torch.clamp(torch.min(torch.max(moved, x - eps), x + eps), 0, 1)
    return points.detach()


def _circle(length: int, like: Tensor) -> Tensor:
    """exp(-2 pi i f / length) for the frequencies of a real transform."""
    f = torch.arange(length // 2 + 1, device=like.device, dtype=like.dtype)
    return torch.exp(-2j * math.pi / length * f)


def _copy_linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    made = nn.Linear(module.in_features, module.out_features, device="meta").to_empty(device="cpu")
    made.to(module.weight.dtype).load_state_dict(module.state_dict())
    return made


def _copy_norm(module: nn.Module) -> nn.LayerNorm:
    assert isinstance(module, nn.LayerNorm)
    made = nn.LayerNorm(list(module.normalized_shape), eps=module.eps)
    made.to(module.weight.dtype).load_state_dict(module.state_dict())
    return made
