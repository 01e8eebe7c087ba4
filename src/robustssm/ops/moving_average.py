"""Moving averages: many decaying real states per channel, forwards in time or both ways.

Legend: w way (forwards; backwards if there are two), n average, c channel.

Nanoseconds per entry of u on one core with AVX-512, both ways in time, float32: averages prepared
and the gradient of u / averages prepared anew and all gradients (the last two forms in torch):

| batch, length, channels, averages | compiled scan | Toeplitz | convolution |
|---|---|---|---|
| 16, 64, 32, 8 | 3.3 / 6.0 | 8.7 / 32 | 24 / 48 |
| 64, 16, 64, 16 | 2.9 / 5.2 | 5.6 / 19 | 12 / 22 |
| 64, 64, 128, 16 | 3.2 / 4.9 | 12 / 24 | 42 / 74 |
| 64, 196, 64, 16 | 3.0 / 6.4 | 23 / 64 | 70 / 105 |
| 8, 1024, 128, 16 | 2.8 / 12 | | 124 / 191 |

The compiled scan wins at every length, so nothing is chosen by length there. Gradients of the
averages come from the scan, which runs the states again: in another run, the last line with all
gradients took 9.3, and by the gradient of the kernel, with compiled transforms, 56.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.convolution import PreparedKernel, causal_convolution, prepared_kernel
from robustssm.ops.kernels import cpu_scan, native
from robustssm.ops.kernels.second_order import differentiable_gradients
from robustssm.ops.structured import vandermonde_product

Form = Literal["compiled_scan", "convolution", "toeplitz"]

TOEPLITZ_UP_TO = 256
"""Longest sequence for which, in torch, one matrix product per channel serves both ways better than
two convolutions: with input gradient, batch 64, length 196, 64 channels, one core, 14 ms to 29."""


@dataclass(frozen=True, eq=False)
class PreparedAverages:
    """Averages and what their form needs of them: made once for many sequences of one length."""

    form: Form
    ways: int
    length: int
    made: tuple[Tensor | PreparedKernel, ...]


def prepared_averages(
    q: Float[Tensor, "ways channels averages"],
    c: Float[Tensor, "ways channels averages"],
    skip: Float[Tensor, " channels"],
    length: int,
    *,
    form: Form | None = None,
) -> PreparedAverages:
    """Makes what `moving_average` needs of its averages, differentiable in them.

    Args:
        q: Factors, (ways, channels, averages), |q| <= 1; one way or two. Pass them in float64: the
            forms in torch make kernels as precise as they are, the compiled scan rounds them.
        c: Weights, (ways, channels, averages), in the dtype of the sequences.
        skip: (channels,), in the dtype of the sequences.
        length: Of the sequences.
        form: How it will be computed; by default the faster one for this length, dtype and device.

    Raises:
        ValueError: If the compiled form was asked for where it cannot run.
    """
    form = form or _fastest(c, length)
    if form == "compiled_scan":
        if not native.available(c, skip):
            reason = native.state().reason.rstrip(".") or f"got {c.dtype} on {c.device}"
            raise ValueError(
                "`prepared_averages(form='compiled_scan')` needs float32 weights on the CPU; "
                f"{reason}. Leave form out."
            )
        # Channels last, as in the sequences. A copy of skip, as a parameter asks for gradients.
        made = q.to(c.dtype).mT.contiguous(), c.mT.contiguous(), skip.clone()
        return PreparedAverages(form, len(q), length, made)
    taps = averaging_kernel(q, c, length)
    taps = torch.cat([taps[:1] + F.pad(skip[:, None], (0, length - 1)), taps[1:]])
    if form == "toeplitz":
        return PreparedAverages(form, len(q), length, (_toeplitz(taps),))
    return PreparedAverages(form, len(q), length, (prepared_kernel(taps.flatten(0, 1)),))


def moving_average(
    u: Float[Tensor, "batch length channels"], averages: PreparedAverages
) -> Float[Tensor, "batch length channels"]:
    """y[t] = skip u[t] + sum over w and n of c[w, n] x[w, n, t].

    x[0, n, t] = q[0, n] x[0, n, t-1] + u[t] forwards in time; x[1] the same backwards, from the
    last step, so the present step counts in both. Differentiable any number of times; averages
    prepared without gradient cost none.

    Args:
        u: Sequences, (batch, length, channels), float32 or float64.
        averages: From `prepared_averages`, for this length.

    Returns:
        y, (batch, length, channels).

    Raises:
        ValueError: If the averages were prepared for another length.

    Numerics: relative to the largest entry, y and all gradients of the compiled scan are within
        3e-6 of float64 for q <= 0.9999 that float32 can hold.
    Oracle: `moving_average_reference`.
    """
    if u.shape[1] != averages.length:
        raise ValueError(
            f"`moving_average` needs averages prepared for its length; got {u.shape[1]} steps and "
            f"averages for {averages.length}. Call prepared_averages(..., length={u.shape[1]})."
        )
    if averages.form == "compiled_scan":
        return _Compiled.apply(u, *averages.made)  # pyright: ignore[reportReturnType]
    (made,) = averages.made
    if isinstance(made, Tensor):
        return torch.bmm(u.permute(2, 0, 1), made).permute(1, 2, 0)
    if averages.ways == 1:
        return causal_convolution(u, made)
    ahead, behind = causal_convolution(torch.cat([u, u.flip(1)], -1), made).chunk(2, -1)
    return ahead + behind.flip(1)


def moving_average_reference(
    u: Float[Tensor, "batch length channels"],
    q: Float[Tensor, "ways channels averages"],
    c: Float[Tensor, "ways channels averages"],
    skip: Float[Tensor, " channels"],
) -> Float[Tensor, "batch length channels"]:
    """`moving_average`, as the loop that defines it."""
    y = skip * u
    for way in range(len(q)):
        x, steps = torch.zeros_like(u[:, 0, :, None] * q[way]), []
        for u_t in (u if way == 0 else u.flip(1)).unbind(1):
            x = q[way] * x + u_t[..., None]
            steps.append((c[way] * x).sum(-1))
        run = torch.stack(steps, 1)
        y = y + (run if way == 0 else run.flip(1))
    return y


def averaging_kernel(
    q: Float[Tensor, "ways channels averages"],
    c: Float[Tensor, "ways channels averages"],
    length: int,
) -> Float[Tensor, "ways channels length"]:
    """k[l] = sum over n of c[n] q[n]^l: what an impulse leaves, without the skip."""
    K = vandermonde_product(c.flatten(0, 1), q.flatten(0, 1), length)
    return K.unflatten(0, (len(q), -1))


def _fastest(c: Tensor, length: int) -> Form:
    if native.available(c):
        return "compiled_scan"
    return "toeplitz" if len(c) == 2 and length <= TOEPLITZ_UP_TO else "convolution"


def _toeplitz(taps: Float[Tensor, "2 channels length"]) -> Float[Tensor, "channels source target"]:
    """T[c, s, t] = ahead[c, t - s] for t >= s, plus behind[c, s - t] for t <= s."""
    ahead, behind = taps
    middle = ahead[:, :1] + behind[:, :1]
    kernel = torch.cat([behind[:, 1:].flip(1), middle, ahead[:, 1:]], 1)
    return kernel.unfold(1, ahead.shape[1], 1).flip(1)


class _Compiled(Function):
    """The loop; the gradient with respect to u is the same loop in the other directions."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, q: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad[1:])
        ctx.save_for_backward(u if wanted else None, q, c, skip)
        return cpu_scan.averages(u, q, c, skip)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (u, *averages) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            # Without u none but du is wanted, which does not depend on it.
            inputs = torch.zeros_like(dy) if u is None else u, *averages
            return (*differentiable_gradients(_plain, inputs, ctx.needs_input_grad, dy),)
        if u is not None:
            return cpu_scan.averages_gradients(dy, u, *averages)
        return cpu_scan.averages(dy, *averages, adjoint=True), None, None, None


def _plain(u: Tensor, q: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """In torch, of q and c with channels last."""
    made = prepared_averages(q.double().mT, c.mT, skip, u.shape[1], form="convolution")
    return moving_average(u, made)
