"""Device code of `triton_selective_scan`: import it only where `available()`.

Legend: r row of the batch, t time, n states of a channel, c channels. Tiles are (T, N, C): channels
one to a lane, states spread over warps, so that scans along time exchange nothing.
Type checks at run time are switched off, since what is compiled here is not Python.
"""

# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _then(a, b, a_next, b_next):
    """The map h -> a h + b, and after it h -> a_next h + b_next."""
    return a * a_next, a_next * b + b_next


@triton.jit
@no_type_check
def _row(tile, step, which):
    """One step of a tile, whose first axis is time."""
    return tl.sum(tl.where(step == which, tile, 0.0), 0)


@triton.jit
@no_type_check
def _load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _places(row, start, time, c, n, channels, states, T: tl.constexpr):
    """Where T steps lie in (rows, channels) and (rows, states), and which are there."""
    t = start + tl.arange(0, T)
    now = (t < time)[:, None]
    at = (row + t)[:, None] * channels + c[None, :]
    vector = (row + t)[:, None] * states + n[None, :]
    return at, now & (c < channels)[None, :], vector, now & (n < states)[None, :]


@triton.jit
@no_type_check
def forward(
    u,
    delta,
    A,
    B,
    readout,
    D,
    y,
    starts,
    time,
    channels,
    states,
    T: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Runs h[t] = exp(delta A) h[t-1] + delta B u; gives readout h + D u, and h every T steps."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    n = tl.arange(0, N)
    held = (n < states)[:, None] & (c < channels)[None, :]
    rate = _load(A + c[None, :] * states + n[:, None], held) * 1.4426950408889634
    skip = _load(D + c, c < channels)
    state_at = n[:, None].to(tl.int64) * channels + c[None, :]
    starts += r * tl.cdiv(time, T) * states * channels
    steps = tl.arange(0, T)
    first = (steps == 0)[:, None, None]
    carry = tl.zeros((N, C), tl.float32)
    for start in range(0, time, T):
        tl.store(starts + state_at, carry, mask=held)
        starts += tl.cast(states, tl.int64) * channels
        at, inside, vector, driving = _places(r * time, start, time, c, n, channels, states, T)
        x, d = _load(u + at, inside), _load(delta + at, inside)
        into = _load(B + vector, driving)
        out = _load(readout + vector, driving)
        a = tl.exp2(d[:, None, :] * rate[None, :, :])
        h = (d * x)[:, None, :] * into[:, :, None]
        h = tl.where(first, a * carry[None, :, :] + h, h)
        _, h = tl.associative_scan((a, h), 0, _then)
        carry = _row(h, steps[:, None, None], T - 1)
        outputs = tl.sum(h * out[:, :, None], 1) + skip[None, :] * x
        tl.store(y + at, outputs.to(y.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _driven_before(u, delta, B, at, vector, inside, driving, steps, channels, states):
    """Returns delta B u of the step before each one; 0 for the first."""
    follows = (steps > 0)[:, None]
    x = _load(u + at - channels, inside & follows)
    d = _load(delta + at - channels, inside & follows)
    into = _load(B + vector - states, driving & follows)
    return (d * x)[:, None, :] * into[:, :, None]


@triton.jit
@no_type_check
def _state_gradients(
    dy, delta, readout, rate, coming, row, start, time, c, n, channels, states, T: tl.constexpr
):
    """Returns g of a chunk in the order of time, and g of its first step for the chunk before.

    Rows are loaded backwards in time, as a scan against its own axis is slow.
    """
    steps = tl.arange(0, T)
    t = start + T - 1 - steps
    lanes, at = (c < channels)[None, :], (row + t)[:, None] * channels + c[None, :]
    now = (t < time)[:, None]
    a_next = _load(delta + at + channels, (t + 1 < time)[:, None] & lanes)
    a_next = tl.exp2(a_next[:, None, :] * rate[None, :, :])
    out = _load(readout + (row + t)[:, None] * states + n[None, :], now & (n < states)[None, :])
    g = _load(dy + at, now & lanes)[:, None, :] * out[:, :, None]
    g = tl.where((steps == 0)[:, None, None], a_next * coming[None, :, :] + g, g)
    _, g = tl.associative_scan((a_next, g), 0, _then)
    return tl.flip(g, 0), _row(g, steps[:, None, None], T - 1)


@triton.jit
@no_type_check
def backward(
    u,
    delta,
    A,
    B,
    readout,
    D,
    starts,
    dy,
    du,
    ddelta,
    dA,
    dB,
    dreadout,
    dD,
    time,
    channels,
    states,
    T: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """All gradients: dA and dD of this row, dB and dreadout of these channels; others sum them.

    g[t] = readout dy + a[t+1] g[t+1] is the gradient of h[t]; kept[t] = a[t] h[t-1] is scanned
    rather than had as h[t] - delta B u, where it would cancel.
    """
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    n = tl.arange(0, N)
    held = (n < states)[:, None] & (c < channels)[None, :]
    mode = c[None, :] * states + n[:, None]
    poles = _load(A + mode, held)
    rate, skip = poles * 1.4426950408889634, _load(D + c, c < channels)
    state_at = n[:, None].to(tl.int64) * channels + c[None, :]
    chunks = tl.cdiv(time, T)
    block = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + r) * time
    steps = tl.arange(0, T)
    coming, slope_A = tl.zeros((N, C), tl.float32), tl.zeros((N, C), tl.float32)
    slope_D = tl.zeros((C,), tl.float32)
    for done in range(0, chunks):
        chunk, start = chunks - 1 - done, (chunks - 1 - done) * T
        h = _load(starts + (r * chunks + chunk) * states * channels + state_at, held)
        at, inside, vector, driving = _places(r * time, start, time, c, n, channels, states, T)
        x, d = _load(u + at, inside), _load(delta + at, inside)
        g_y, into, driven = _load(dy + at, inside), _load(B + vector, driving), d * x
        a = tl.exp2(d[:, None, :] * rate[None, :, :])
        earlier = _driven_before(u, delta, B, at, vector, inside, driving, steps, channels, states)
        before = tl.where((steps == 0)[:, None, None], h[None, :, :], earlier)
        _, kept = tl.associative_scan((a, a * before), 0, _then)
        h = kept + driven[:, None, :] * into[:, :, None]
        part = (block + start + steps)[:, None] * states + n[None, :]
        tl.store(dreadout + part, tl.sum(g_y[:, None, :] * h, 2), mask=driving)
        g, coming = _state_gradients(
            dy, delta, readout, rate, coming, r * time, start, time, c, n, channels, states, T
        )
        tl.store(dB + part, tl.sum(g * driven[:, None, :], 2), mask=driving)
        read = tl.sum(g * into[:, :, None], 1)
        slope_A += tl.sum(g * kept * d[:, None, :], 0)
        slope_d = x * read + tl.sum(g * kept * poles[None, :, :], 1)
        slope_D += tl.sum(g_y * x, 0)
        tl.store(du + at, (d * read + skip[None, :] * g_y).to(du.dtype.element_ty), mask=inside)
        tl.store(ddelta + at, slope_d.to(ddelta.dtype.element_ty), mask=inside)
    tl.store(dA + r * channels * states + mode, slope_A, mask=held)
    tl.store(dD + r * channels + c, slope_D, mask=c < channels)
