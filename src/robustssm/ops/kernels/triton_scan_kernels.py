"""Device code of `triton_scan`: import it only where `available()`.

Legend: r row of the batch, t time, c channels, n averages of a channel. A program takes T steps at
a time, which it scans together, and carries the state to the next ones. "Step" counts in the order
of the scan, so that a scan against time differs in addresses only.
Type checks at run time are switched off, since what is compiled here is not Python.
"""

# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _then(a, b, a_next, b_next):
    """H -> a h + b, and after it h -> a_next h + b_next."""
    return a * a_next, a_next * b + b_next


@triton.jit
@no_type_check
def _then_complex(ar, ai, br, bi, cr, ci, dr, di):
    """`_then` for h -> (a) h + (b) and h -> (c) h + (d), real and imaginary parts."""
    re = cr * br - ci * bi + dr
    im = cr * bi + ci * br + di
    return ar * cr - ai * ci, ar * ci + ai * cr, re, im


@triton.jit
@no_type_check
def _row(tile, step, which):
    """One step of a tile, whose first axis is time."""
    return tl.sum(tl.where(step == which, tile, 0.0), 0)


@triton.jit
@no_type_check
def real_scan(
    a,
    b,
    h,
    states,
    slopes,
    time,
    channels,
    a_rows,
    REVERSE: tl.constexpr,
    VARYING: tl.constexpr,
    ADJOINT: tl.constexpr,
    SLOPES: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
):
    """H = a h[before] + b over the steps of one row and C channels.

    ADJOINT: each step takes the factor of the step before it, as gradients do, and with SLOPES the
    gradient of the factors is made of h and of `states` one step on: for every step if factors are
    VARYING, else summed over time, one number per row and channel. `a_rows` is 1 if each row of the
    batch has its own factors, else 0.
    """
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    row, a_row = r * time * channels, a_rows * r * time * channels
    steps = tl.arange(0, T)[:, None]
    carry = tl.zeros((C,), tl.float32)
    total = tl.zeros((C,), tl.float32)
    fixed = tl.load(a + c, mask=c < channels, other=0.0) if not VARYING else carry
    for start in range(0, time, T):
        step = start + steps
        inside = (step < time) & (c < channels)[None, :]
        t = time - 1 - step if REVERSE else step
        at = t.to(tl.int64) * channels + c[None, :]
        onwards = at - channels if REVERSE else at + channels
        x = tl.load(b + row + at, mask=inside, other=0.0)
        if VARYING and ADJOINT:
            back = at + channels if REVERSE else at - channels
            factor = tl.load(a + a_row + back, mask=inside & (step > 0), other=0.0)
        elif VARYING:
            factor = tl.load(a + a_row + at, mask=inside, other=0.0)
        else:
            factor = tl.broadcast_to(fixed[None, :], (T, C))
        x = tl.where(steps == 0, factor * carry[None, :] + x, x)
        _, x = tl.associative_scan((factor, x), 0, _then)
        tl.store(h + row + at, x, mask=inside)
        carry = _row(x, steps, T - 1)
        if SLOPES:
            known = inside & (step < time - 1)
            slope = x * tl.load(states + row + onwards, mask=known, other=0.0)
            if VARYING:
                tl.store(slopes + row + at, slope, mask=inside)
            else:
                total += tl.sum(tl.where(known, slope, 0.0), 0)
    if SLOPES and not VARYING:
        tl.store(slopes + r * channels + c, total, mask=c < channels)


@triton.jit
@no_type_check
def _load_complex(address, mask, T: tl.constexpr, C: tl.constexpr):
    """T rows of C complex numbers, as they lie in memory, as real and imaginary parts."""
    return tl.split(tl.reshape(tl.load(address, mask=mask, other=0.0), (T, C, 2)))


@triton.jit
@no_type_check
def _store_complex(address, real, imaginary, mask, T: tl.constexpr, C: tl.constexpr):
    tl.store(address, tl.reshape(tl.join(real, imaginary), (T, 2 * C)), mask=mask)


@triton.jit
@no_type_check
def complex_scan(
    a,
    b,
    h,
    states,
    slopes,
    time,
    channels,
    a_rows,
    REVERSE: tl.constexpr,
    VARYING: tl.constexpr,
    ADJOINT: tl.constexpr,
    SLOPES: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
):
    """`real_scan` for complex numbers, as float32 pairs; the adjoint's factors are conjugated."""
    r = tl.program_id(0).to(tl.int64)
    size = 2 * channels
    part = 2 * C * tl.program_id(1) + tl.arange(0, 2 * C)[None, :]
    row, a_row = r * time * size, a_rows * r * time * size
    steps = tl.arange(0, T)[:, None]
    cr, ci = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    sr, si = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    fr, fi = cr[None, :], ci[None, :]
    if not VARYING:
        fr, fi = _load_complex(a + part, part < size, 1, C)
    for start in range(0, time, T):
        step = start + steps
        inside = (step < time) & (part < size)
        t = time - 1 - step if REVERSE else step
        at = t.to(tl.int64) * size + part
        onwards = at - size if REVERSE else at + size
        xr, xi = _load_complex(b + row + at, inside, T, C)
        if VARYING and ADJOINT:
            back = at + size if REVERSE else at - size
            ar, ai = _load_complex(a + a_row + back, inside & (step > 0), T, C)
        elif VARYING:
            ar, ai = _load_complex(a + a_row + at, inside, T, C)
        else:
            ar, ai = tl.broadcast_to(fr, (T, C)), tl.broadcast_to(fi, (T, C))
        if ADJOINT:
            ai = -ai
        xr = tl.where(steps == 0, ar * cr[None, :] - ai * ci[None, :] + xr, xr)
        xi = tl.where(steps == 0, ar * ci[None, :] + ai * cr[None, :] + xi, xi)
        _, _, xr, xi = tl.associative_scan((ar, ai, xr, xi), 0, _then_complex)
        _store_complex(h + row + at, xr, xi, inside, T, C)
        cr, ci = _row(xr, steps, T - 1), _row(xi, steps, T - 1)
        if SLOPES:
            known = inside & (step < time - 1)
            pr, pi = _load_complex(states + row + onwards, known, T, C)
            re, im = xr * pr + xi * pi, xi * pr - xr * pi
            if VARYING:
                _store_complex(slopes + row + at, re, im, inside, T, C)
            else:
                sr += tl.sum(tl.where(step < time - 1, re, 0.0), 0)
                si += tl.sum(tl.where(step < time - 1, im, 0.0), 0)
    if SLOPES and not VARYING:
        _store_complex(slopes + r * size + part, sr[None, :], si[None, :], part < size, 1, C)


@triton.jit
@no_type_check
def averages(
    u,
    q,
    weights,
    y,
    time,
    channels,
    modes,
    REVERSE: tl.constexpr,
    T: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Writes y[t, c] = sum over n of weights[c, n] x[t, n, c], x[t] = q x[before] + u[t].

    Channels are innermost, one to a lane, and averages are spread over warps: time stays in a lane.
    """
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    n = tl.arange(0, N)
    held = (n < modes)[:, None] & (c < channels)[None, :]
    mode = c[None, :] * modes + n[:, None]
    factor = tl.broadcast_to(tl.load(q + mode, mask=held, other=0.0)[None, :, :], (T, N, C))
    weight = tl.load(weights + mode, mask=held, other=0.0)[None, :, :]
    row = r * time * channels
    steps = tl.arange(0, T)
    carry = tl.zeros((N, C), tl.float32)
    for start in range(0, time, T):
        step = start + steps
        t = time - 1 - step if REVERSE else step
        inside = (step < time)[:, None] & (c < channels)[None, :]
        at = row + t[:, None].to(tl.int64) * channels + c[None, :]
        inputs = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.broadcast_to(inputs[:, None, :], (T, N, C))
        first = (steps == 0)[:, None, None]
        x = tl.where(first, factor * carry[None, :, :] + x, x)
        _, x = tl.associative_scan((factor, x), 0, _then)
        carry = _row(x, steps[:, None, None], T - 1)
        outputs = tl.sum(x * weight, 1)
        tl.store(y + at, outputs.to(y.dtype.element_ty), mask=inside)
