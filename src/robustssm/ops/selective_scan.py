"""The selective scan of Mamba (gu2023mamba): h[t] = exp(delta[t] A) h[t-1] + g[t] B[t] u[t].

Legend: b batch, t time, d channels, n states per channel.
"""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import violation
from robustssm.ops.discretize import expm1_ratio
from robustssm.ops.kernels import (
    cpu_selective_scan,
    gpu,
    native,
    torch_selective_scan,
    triton_selective_scan,
)

Discretization = Literal["euler", "zoh"]


def selective_scan(
    u: Float[Tensor, "batch time channels"],
    delta: Float[Tensor, "batch time channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channels"],
    *,
    bias: Float[Tensor, " channels"] | None = None,
    gate: Float[Tensor, "batch time channels"] | None = None,
    discretization: Discretization = "euler",
) -> Float[Tensor, "batch time channels"]:
    """Runs the selective state space model of Mamba.

    h[t] = exp(delta[t] A) h[t-1] + g[t] B[t] u[t],   y[t] = sum_n C[t, n] h[t, n] + D u[t],
    with g = delta ("euler", as in Mamba's code) or g = (exp(delta A) - 1) / A ("zoh", as in its
    paper). Memory for the backward pass is that of the states at the starts of chunks; the rest is
    computed again. float32 on a CPU is compiled. Gradients of gradients are possible, slower and
    with all states in memory.

    Args:
        u: Inputs, (batch, time, channels).
        delta: Step sizes, (batch, time, channels), not negative; with a bias, any numbers.
        A: Diagonal of the state matrix, (channels, state); negative is stable.
        B: Input vectors, (batch, time, state).
        C: Output vectors, (batch, time, state).
        D: Skip, (channels,).
        bias: If given, step sizes are softplus(delta + bias).
        gate: If given, the result is y * silu(gate).
        discretization: Of B; A's is always exact.

    Returns:
        y, (batch, time, channels), in the dtype of `u`.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics: in float32 y is within 3e-7 and every gradient within 1e-6 of the largest entry of the
        float64 result, in compiled code and in torch's.
    Source: gu2023mamba, section 3 and algorithm 2.
    Oracle: `selective_scan_reference` (tests/ops/test_selective_scan.py).
    """
    held = discretization == "zoh"
    inputs = u, delta, A, B, C, D, bias, gate
    _check_shapes(*inputs)
    given = [x for x in inputs if x is not None]
    if not native.available(*given):
        return _composed(*inputs, held=held)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    again = functools.partial(_composed, held=held)
    y = cpu_selective_scan.SelectiveScan.apply(*inputs, held, keep, again)
    return y  # pyright: ignore[reportReturnType]


def selective_scan_reference(
    u: Float[Tensor, "batch time channels"],
    delta: Float[Tensor, "batch time channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channels"],
    *,
    bias: Float[Tensor, " channels"] | None = None,
    gate: Float[Tensor, "batch time channels"] | None = None,
    discretization: Discretization = "euler",
) -> Float[Tensor, "batch time channels"]:
    """`selective_scan`, as the loop that defines it."""
    delta = delta if bias is None else torch.log1p(torch.exp(delta + bias))
    h = u.new_zeros(len(u), *A.shape)
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True):
        held = delta_t[..., None]
        gain = held if discretization == "euler" else hold_gain(held, A)
        h = torch.exp(held * A) * h + gain * B_t[:, None] * u_t[..., None]
        outputs.append((h * C_t[:, None]).sum(-1) + D * u_t)
    y = torch.stack(outputs, 1)
    return y if gate is None else y * gate * torch.sigmoid(gate)


def hold_gain(
    delta: Float[Tensor, "*#shape"], A: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*#shape"]:
    """(exp(delta A) - 1) / A for inputs held over a step, and its limit delta at A = 0."""
    return delta * expm1_ratio(delta * A)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
) -> None:
    """Compiled code reads what it was told is there."""
    (batch, time, channels), state = u.shape, A.shape[-1]
    sequence, vectors, row = (batch, time, channels), (batch, time, state), (channels,)
    needed = sequence, (channels, state), vectors, vectors, row, row, sequence
    names = ("delta", "A", "B", "C", "D", "bias", "gate")
    for name, x, shape in zip(names, (delta, A, B, C, D, bias, gate), needed, strict=True):
        if x is not None and x.shape != shape:
            must = f"have shape {shape} for u of shape {sequence} and {state} states"
            raise ValueError(violation(f"`selective_scan({name}=...)`", must, tuple(x.shape)))


def _composed(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    *,
    held: bool,
) -> Tensor:
    """In torch operations, differentiable any number of times."""
    if bias is not None:
        delta = F.softplus(delta + bias)
    driven = u if held else delta * u
    scan = triton_selective_scan
    chosen = "zoh" if held else "euler"
    if gpu.serves(u) and scan.supports(u, delta, A, B, C, D, discretization=chosen):
        y = scan.selective_scan(u, delta, A, B, C, D)
    else:
        y = torch_selective_scan.SelectiveScan.apply(driven, delta, A, B, C, held)
        y = torch.addcmul(y, D, u)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return y if gate is None else y * F.silu(gate)
