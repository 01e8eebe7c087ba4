"""Device code of `triton_state_space`: import it only where `available()`.

Legend: c channels, b batch, t time within a chunk, m entries of the state.
Type checks at run time are switched off, since what is compiled here is not Python.
"""

# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _product(a, b, total, PRECISION: tl.constexpr):
    """The matrix product a b, added to `total`."""
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
@no_type_check
def chunked(
    x,
    y,
    taps,
    out,
    into,
    power,
    batch,
    length,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Runs one channel of N sequences, (channels, batch, length), T steps at a time.

    With X the inputs of a chunk and S the state before it: Y = Toeplitz(taps) X + out S, then
    S <- power S + into X. The four matrices stay on the chip; state and inputs pass by.
    """
    c = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * N + tl.arange(0, N)
    t, m = tl.arange(0, T), tl.arange(0, M)
    lag = t[:, None] - t[None, :]
    toeplitz = tl.load(taps + c * T + lag, mask=lag >= 0, other=0.0)
    reading = tl.load(out + c * T * M + t[:, None] * M + m[None, :])
    driving = tl.load(into + c * M * T + m[:, None] * T + t[None, :])
    moving = tl.load(power + c * M * M + m[:, None] * M + m[None, :])
    sequences = (c * batch + b) * length
    state = tl.zeros((M, N), tl.float32)
    for start in range(0, length, T):
        inside = (start + t < length)[:, None] & (b < batch)[None, :]
        at = sequences[None, :] + (start + t)[:, None]
        inputs = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        outputs = _product(toeplitz, inputs, tl.zeros((T, N), tl.float32), PRECISION)
        outputs = _product(reading, state, outputs, PRECISION)
        tl.store(y + at, outputs.to(y.dtype.element_ty), mask=inside)
        moved = _product(moving, state, tl.zeros((M, N), tl.float32), PRECISION)
        state = _product(driving, inputs, moved, PRECISION)
