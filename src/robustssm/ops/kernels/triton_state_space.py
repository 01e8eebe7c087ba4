"""Linear systems with fixed parameters on tensor cores, chunk by chunk, in Triton: for attacks.

Checked with the Triton interpreter; not yet run on a GPU. (It compiles for compute capability 9.0,
to warp-group instructions.)

Where `triton_convolution` multiplies with the whole Toeplitz matrix of a kernel, this goes through
time in chunks of T = 64 steps, with the state between them: four products with matrices of 64 by 64
that are made once per attack (`prepare`) and stay on the chip. So work grows with the length, not
with its square, and any system x[t] = A x[t-1] + b u[t], y[t] = c x[t] + d u[t] of up to 64 real
states will do: S4's dense one as well as a diagonal one (`from_modes`).

Rounding, emulated in torch for S4's and S4D's first systems at length 1024 and 64 states, relative
to max|y|: 3e-7 with "tf32x3", as in float32 itself, 4e-4 with "tf32" and 4e-3 with "bf16".

Counted per entry of u, with M = 64 states: 2 (T + 2 M + M M / T) = 512 floating-point operations,
at any length; in float32, 24 bytes of main memory, as the product reads its input once and copies
(batch, length, channels) to (channels, batch, length) and back, where 8 are the least. A channel's
matrices are 64 KiB, read once by each program.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from robustssm.ops.kernels.triton_convolution import COPY, DotPrecision, torch_precision
from robustssm.ops.kernels.triton_support import Verdict, available, blocks, launch, placed, require
from robustssm.ops.recurrence import Recurrence

__all__ = [
    "Chunks",
    "available",
    "from_modes",
    "from_recurrence",
    "prepare",
    "run",
    "supports",
]

STEPS = 64
"""Length of a chunk, and the number of states after padding: what a warp group multiplies."""


class Chunks(NamedTuple):
    """What happens to the inputs of a chunk and to the state before it, for every channel."""

    taps: Float[Tensor, "channels steps"]
    """Of the kernel: from an input to the outputs of its own chunk."""
    out: Float[Tensor, "channels steps states"]
    """From the state before a chunk to its outputs."""
    into: Float[Tensor, "channels states steps"]
    """From a chunk's inputs to the state after it."""
    power: Float[Tensor, "channels states states"]
    """From state to state."""


@torch.no_grad()
def prepare(
    A: Float[Tensor, "#channels states states"],
    b: Float[Tensor, "#channels states"],
    c: Float[Tensor, "channels states"],
    d: Float[Tensor, " channels"] | None = None,
    *,
    steps: int = STEPS,
) -> Chunks:
    """The four matrices of every channel, made in double precision and rounded to float32.

    Args:
        A: Discrete state matrix, (channels or 1, states, states).
        b: Input vector, (channels or 1, states).
        c: Output vector, (channels, states).
        d: Skip, (channels,); none if None.
        steps: Length of a chunk, a power of two.

    Raises:
        ValueError: If there are more states than steps.
    """
    channels, states = c.shape
    if states > steps:
        raise ValueError(
            f"`prepare` must be given at most {steps} states, as a chunk has steps; got {states}. "
            "Use the convolution with the system's kernel."
        )
    A, b, c = (x.detach().double() for x in (A, b, c))
    pad = steps - states
    A = torch.nn.functional.pad(A, (0, pad, 0, pad))
    column = torch.nn.functional.pad(b, (0, pad))[..., None].expand(max(len(A), len(b)), -1, -1)
    row = torch.nn.functional.pad(c, (0, pad))[:, None]
    columns, rows = [column], [row @ A]
    for _ in range(steps - 1):
        columns.append(A @ columns[-1])
        rows.append(rows[-1] @ A)
    into, out = torch.cat(columns, 2), torch.cat(rows, 1)
    taps = (row @ into)[:, 0]
    if d is not None:
        taps[:, 0] += d
    full = (channels, steps, steps)
    parts = taps, out, into.flip(2).expand(full), torch.matrix_power(A, steps).expand(full)
    return Chunks(*(part.float().contiguous() for part in parts))


def from_modes(
    base: Complex[Tensor, "#channels modes"], weights: Complex[Tensor, "channels modes"]
) -> tuple[
    Float[Tensor, "#channels states states"],
    Float[Tensor, "1 states"],
    Float[Tensor, "channels states"],
]:
    """A, b and c of y[t] = Re sum_n weights_n x_n[t], x_n[t] = base_n x_n[t-1] + u[t].

    The kernel is `ops.structured.vandermonde_product(weights, base, length)`.

    Args:
        base: Discrete eigenvalues, (channels or 1, modes).
        weights: How states are read, times how inputs enter them, (channels, modes).

    Returns:
        A real system of twice as many states: real parts, then imaginary parts.
    """
    real, imaginary = torch.diag_embed(base.real), torch.diag_embed(base.imag)
    A = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
    ones = torch.ones_like(base.real[:1])
    b = torch.cat([ones, torch.zeros_like(ones)], -1)
    return A, b, torch.cat([weights.real, -weights.imag], -1)


def from_recurrence(system: Recurrence, *, steps: int = STEPS) -> Chunks:
    """`prepare` for a system of one input and one output per group, the same at every step.

    Args:
        system: Dense and real, or diagonal; best in double precision.
        steps: Length of a chunk.

    Raises:
        ValueError: If it varies, has more inputs or outputs, or a second direction.
    """
    A, B, C = (part[0, 0] for part in (system.A, system.B, system.C))
    varying = any(part.shape[:2] != (1, 1) for part in (system.A, system.B, system.C))
    if (
        varying
        or system.D.shape[1:] != (1, 1)
        or system.backward
        or not (system.diagonal or A.dtype.is_floating_point)
    ):
        raise ValueError(
            "`from_recurrence` must be given one direction of a system with one input and output "
            "per group, constant in time, dense and real or diagonal; got A of shape "
            f"{tuple(system.A.shape)}, {system.A.dtype}, D of shape {tuple(system.D.shape)}. Use "
            "the layer's own forward."
        )
    skip, b, c = system.D[:, 0, 0], B[..., 0], C[:, 0].expand(len(system.D), -1)
    if not system.diagonal:
        return prepare(A, b, c, skip, steps=steps)
    pairs = 2 if system.conjugate_pairs else 1
    weights = (pairs * b * c).to(torch.complex128)
    return prepare(*from_modes(A.to(torch.complex128), weights), skip, steps=steps)


def supports(u: Float[Tensor, "batch length channels"], system: Chunks) -> Verdict:
    """Whether `run` takes these: yes, or no and why."""
    if u.dtype not in (torch.float32, torch.bfloat16):
        return Verdict(f"inputs must be float32 or bfloat16; they are {u.dtype}.")
    channels, steps = system.taps.shape
    if u.shape[2] != channels:
        return Verdict(f"the system has {channels} channels; inputs have {u.shape[2]}.")
    if steps < 16 or steps & (steps - 1) or system.power.shape[1] != steps:
        return Verdict("a chunk must have a power of two of steps, 16 or more: make it by prepare.")
    if u.shape[0] > 65535:
        return Verdict("a launch takes at most 65535 sequences.")
    return placed(u, *system)


def run(
    u: Float[Tensor, "batch length channels"],
    system: Chunks,
    *,
    reverse: bool = False,
    precision: DotPrecision | None = None,
) -> Float[Tensor, "batch length channels"]:
    """The outputs of the system; differentiable in `u`, any number of times, and in nothing else.

    Args:
        u: Inputs, (batch, length, channels), float32 or bfloat16.
        system: Made by `prepare`.
        reverse: Runs against time, which is the adjoint.
        precision: How products round their operands, states among them; by default as torch's
            matrix products may, at most to "tf32", else "tf32x3". Not "ieee", whose tiles do not
            fit.

    Returns:
        y, in the dtype of `u`.

    Raises:
        ValueError: If kernels cannot run here (`available`) or not on these (`supports`).
    """
    chosen = precision or torch_precision()
    exact = Verdict("products must be 'tf32x3', 'tf32' or 'bf16'; got 'ieee'.")
    require("run", available(), supports(u, system), exact if chosen == "ieee" else Verdict())
    return _Run.apply(u, system, reverse, chosen)  # pyright: ignore[reportReturnType]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, system: Chunks, reverse: bool, precision: DotPrecision
    ) -> Tensor:
        ctx.rest = system, not reverse, precision
        return _run(u.detach().contiguous(), system, reverse, precision)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        du: Any = _Run.apply(gradients[0], *ctx.rest)
        return du, None, None, None


def _run(u: Tensor, system: Chunks, reverse: bool, precision: DotPrecision) -> Tensor:
    from robustssm.ops.kernels import triton_convolution_kernels as copies
    from robustssm.ops.kernels import triton_state_space_kernels as device

    batch, length, channels = u.shape
    narrow = precision == "bf16" or u.dtype == torch.bfloat16
    x = u.new_empty(channels, batch, length, dtype=torch.bfloat16 if narrow else torch.float32)
    y, result = u.new_empty(channels, batch, length), torch.empty_like(u)
    grid, sizes = (batch, blocks(length, COPY["T"]), blocks(channels, COPY["C"])), u.shape
    # Three products for each one need three times the shared memory, so half as many sequences.
    N, warps = (32, 4) if precision == "tf32x3" else (64, 8)
    steps = system.taps.shape[1]
    launch(copies.to_channel_major, grid, u, x, *sizes, REVERSE=reverse, **COPY)
    launch(
        device.chunked,
        (channels, blocks(batch, N)),
        *(x, y, *system, batch, length),
        PRECISION=precision,
        T=steps,
        M=steps,
        N=N,
        num_warps=warps,
    )
    launch(copies.to_batch_major, grid, y, result, *sizes, REVERSE=reverse, **COPY)
    return result
