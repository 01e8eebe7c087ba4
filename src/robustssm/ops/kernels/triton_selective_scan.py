"""Mamba's selective scan in Triton: states at the starts of chunks are kept, the rest made again.

Checked with the Triton interpreter; not yet run on a GPU. (It compiles for compute capability 9.0
without spills; scans along time stay within a lane.)

A program takes 32 channels of one row of the batch, all their states, and goes through time in
chunks of T steps, 16 for 16 states. Counted per step and channel, with N states:

- forward, 12 bytes are read and written in float32, 4 N / T more for the kept states, and N
  exponentials are made; nothing else of the size of all states touches memory. Backward, 20 bytes
  and the kept states, and 2 N exponentials: rather than stored, or reversed, they are made again.
- The gradients of B and C are sums over channels: of 32 within a program, then of those parts,
  N / 4 bytes per step and channel for the two, by torch, always in the same order. So are those of
  A and D over the batch. No atomics: the same numbers give the same bits.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels.second_order import differentiable_gradients
from robustssm.ops.kernels.triton_support import (
    Verdict,
    available,
    blocks,
    launch,
    placed,
    power_of_two,
    require,
)

__all__ = ["available", "selective_scan", "supports"]

_LANES = 32
_MOST_STATES = 128


def supports(
    u: Float[Tensor, "batch time channels"],
    delta: Float[Tensor, "batch time channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channels"],
    *,
    discretization: str = "euler",
) -> Verdict:
    """Whether `selective_scan` takes these: yes, or no and why."""
    if discretization != "euler":
        return Verdict(
            f"the discretization must be 'euler', as in Mamba's code; it is '{discretization}', "
            "whose slopes in A need a series of their own."
        )
    for name, tensor in {"u": u, "delta": delta, "B": B, "C": C}.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            return Verdict(f"{name} must be float32 or bfloat16; it is {tensor.dtype}.")
    if (A.dtype, D.dtype) != (torch.float32, torch.float32):
        return Verdict(f"A and D must be float32; they are {A.dtype} and {D.dtype}.")
    if A.shape[1] > _MOST_STATES:
        return Verdict(f"a channel has at most {_MOST_STATES} states here; it has {A.shape[1]}.")
    return placed(u, delta, A, B, C, D)


def selective_scan(
    u: Float[Tensor, "batch time channels"],
    delta: Float[Tensor, "batch time channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channels"],
) -> Float[Tensor, "batch time channels"]:
    """`ops.selective_scan.selective_scan` with the discretisation "euler"; differentiable twice.

    h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t],   y[t] = sum_n C[t, n] h[t, n] + D u[t].
    Second derivatives are those of `selective_scan_reference`.

    Args:
        u: Inputs, (batch, time, channels), float32 or bfloat16.
        delta: Step sizes, (batch, time, channels), not negative.
        A: Diagonal of the state matrix, (channels, state), float32.
        B: Input vectors, (batch, time, state).
        C: Output vectors, (batch, time, state).
        D: Skip, (channels,), float32.

    Returns:
        y, in the dtype of `u`; states are float32.

    Raises:
        ValueError: If kernels cannot run here (`available`) or not on these (`supports`).
    """
    require("selective_scan", available(), supports(u, delta, A, B, C, D))
    return _SelectiveScan.apply(u, delta, A, B, C, D)  # pyright: ignore[reportReturnType]


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, starts = _forward(*(x.detach().contiguous() for x in inputs))
        ctx.save_for_backward(*inputs, starts)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            from robustssm.ops.selective_scan import selective_scan_reference

            wanted = ctx.needs_input_grad
            return tuple(
                differentiable_gradients(selective_scan_reference, inputs, wanted, gradients[0])
            )
        return _backward([x.detach().contiguous() for x in inputs], starts, gradients[0])


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs, and the states before every chunk, (batch, chunks, state, channels)."""
    from robustssm.ops.kernels import triton_selective_scan_kernels as device

    (batch, time, channels), states = u.shape, A.shape[1]
    steps, N, warps = _tile(states)
    y = torch.empty_like(u)
    starts = A.new_empty(batch, blocks(time, steps), states, channels)
    launch(
        device.forward,
        (batch, blocks(channels, _LANES)),
        *(u, delta, A, B, C, D, y, starts),
        *(time, channels, states),
        T=steps,
        N=N,
        C=_LANES,
        num_warps=warps,
    )
    return y, starts


def _backward(inputs: list[Tensor], starts: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The gradients of u, delta, A, B, C and D."""
    from robustssm.ops.kernels import triton_selective_scan_kernels as device

    u, delta, A, B, C, D = inputs
    (batch, time, channels), states = u.shape, A.shape[1]
    steps, N, warps = _tile(states)
    groups = blocks(channels, _LANES)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, dD = A.new_empty(batch, *A.shape), A.new_empty(batch, channels)
    dB, dC = A.new_empty(2, groups, batch, time, states)
    launch(
        device.backward,
        (batch, groups),
        *(u, delta, A, B, C, D, starts, dy.contiguous()),
        *(du, ddelta, dA, dB, dC, dD),
        *(time, channels, states),
        T=steps,
        N=N,
        C=_LANES,
        num_warps=warps,
    )
    return du, ddelta, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0)


def _tile(states: int) -> tuple[int, int, int]:
    """Steps of a chunk, states with padding, and warps: 32 numbers of a tile to a lane, or less."""
    N = power_of_two(states)
    return max(2, min(16 if N >= 8 else 8, 256 // N)), N, min(8, max(1, N // 2))
