"""Device code of `triton_convolution`: import it only where `available()`.

Legend: b batch, c channels, t time of the output, s time of the input.
Type checks at run time are switched off, since what is compiled here is not Python.
"""

# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def to_channel_major(
    source, target, batch, length, channels, REVERSE: tl.constexpr, T: tl.constexpr, C: tl.constexpr
):
    """Copies target[c, b, t] = source[b, t, c], or source[b, length - 1 - t, c]."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    at = length - 1 - t if REVERSE else t
    rows = b * length + at
    tile = tl.load(source + rows[:, None] * channels + c[None, :], mask=inside, other=0.0)
    columns = (c[None, :].to(tl.int64) * batch + b) * length
    tl.store(target + columns + t[:, None], tile.to(target.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def to_batch_major(
    source, target, batch, length, channels, REVERSE: tl.constexpr, T: tl.constexpr, C: tl.constexpr
):
    """The inverse of `to_channel_major`: target[b, t, c] = source[c, b, t], or reversed in t."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    columns = (c[None, :].to(tl.int64) * batch + b) * length
    tile = tl.load(source + columns + t[:, None], mask=inside, other=0.0)
    at = length - 1 - t if REVERSE else t
    rows = b * length + at
    out = target + rows[:, None] * channels + c[None, :]
    tl.store(out, tile.to(target.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def toeplitz(
    x,
    taps,
    y,
    batch,
    length,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
    N: tl.constexpr,
):
    """Sums y[c, b, t] = sum over s <= t of taps[c, t - s] x[c, b, s], T times of N sequences.

    Tiles of the Toeplitz matrix are gathered from the taps as they are needed: T + S - 1 numbers,
    which stay in the first cache. The last tiles in time have the most work and start first.
    """
    last = tl.num_programs(0) - 1
    t = (last - tl.program_id(0)) * T + tl.arange(0, T)
    b = tl.program_id(1) * N + tl.arange(0, N)
    c = tl.program_id(2).to(tl.int64)
    row = taps + c * length
    sequences = (c * batch + b) * length
    end = tl.minimum((last - tl.program_id(0) + 1) * T, length)
    total = tl.zeros((T, N), tl.float32)
    for start in range(0, end, S):
        s = start + tl.arange(0, S)
        lag = t[:, None] - s[None, :]
        held = (lag >= 0) & (t < length)[:, None]
        matrix = tl.load(row + lag, mask=held, other=0.0)
        inside = (s < length)[:, None] & (b < batch)[None, :]
        inputs = tl.load(x + sequences[None, :] + s[:, None], mask=inside, other=0.0)
        if PRECISION == "bf16":
            matrix = matrix.to(tl.bfloat16)
            inputs = inputs.to(tl.bfloat16)
            total = tl.dot(matrix, inputs, total)
        else:
            inputs = inputs.to(tl.float32)
            total = tl.dot(matrix, inputs, total, input_precision=PRECISION)
    inside = (t < length)[:, None] & (b < batch)[None, :]
    out = y + sequences[None, :] + t[:, None]
    tl.store(out, total.to(y.dtype.element_ty), mask=inside)
