"""The selective scan in torch: chunks of steps, with states computed again.

Legend: b batch, t time, d channels, n states per channel.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustssm.ops.discretize import expm1_ratio
from robustssm.ops.kernels.second_order import differentiable_gradients
from robustssm.ops.scan import linear_scan

_LOG2_E = math.log2(math.e)
# Measured on one CPU core with 1 MiB of L2 cache: chunks of 2 MiB are the fastest, and steps of
# 2^16 numbers are large enough to hide what a call to torch costs.
_STEP_ELEMENTS = 2**16
_CHUNK_ELEMENTS = 2**19


class SelectiveScan(torch.autograd.Function):
    """y[t] = C[t] h[t] for h[t] = exp(delta A) h[t-1] + gain B[t] x[t].

    The gain is 1, or if held (exp(delta A) - 1) / A.

    Tensors of the size of all states exist for one chunk of steps and one block of rows at a time,
    as (rows, steps, state, channels): the longest axis innermost.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
    ) -> Tensor:
        rows, steps = _tile(x, A)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        starts = x.new_empty(-(-x.shape[1] // steps), len(x), A.shape[1], A.shape[0])
        starts[:1].zero_()
        for first in range(0, len(x), rows):
            block = slice(first, first + rows)
            chunks = _Chunks(x[block], delta[block], A, B[block], steps, zoh)
            for k, start in enumerate(starts[:, block]):
                _, h = chunks.run(k, start)
                y[block, chunks.span(k)] = _over_states(C[block, chunks.span(k)], h)
                if k + 1 < len(starts):
                    starts[k + 1, block] = h[:, -1]
        ctx.save_for_backward(x, delta, A, B, C, starts)
        ctx.rows, ctx.steps, ctx.zoh = rows, steps, zoh
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            composed = functools.partial(_composed, zoh=ctx.zoh)
            wanted = ctx.needs_input_grad[:-1]
            return *differentiable_gradients(composed, inputs, wanted, gradients[0]), None
        x, delta, A, B, C = inputs
        dx, ddelta, dB, dC = (torch.empty_like(M) for M in (x, delta, B, C))
        dA = torch.zeros_like(A) if ctx.needs_input_grad[2] else None
        for first in range(0, len(x), ctx.rows):
            block = slice(first, first + ctx.rows)
            chunks = _Chunks(x[block], delta[block], A, B[block], ctx.steps, ctx.zoh)
            out = [slope[block] for slope in (dx, ddelta, dB, dC)]
            _chunks_backward(chunks, C[block], starts[:, block], gradients[0][block], out, dA)
        return dx, ddelta, dA, dB, dC, None


def _tile(x: Tensor, A: Tensor) -> tuple[int, int]:
    """Rows of the batch and steps in time that are worked on at once."""
    batch, time = x.shape[:2]
    if x.device.type != "cpu":  # no caches to fit: as few calls as memory allows
        return max(batch, 1), max(1, min(time, 32))
    size = max(A.numel(), 1)
    rows = max(1, min(batch, _STEP_ELEMENTS // size))
    return rows, max(1, min(time, _CHUNK_ELEMENTS // (rows * size)))


class _Chunks:
    """The states of some rows, chunk by chunk, in buffers that are used again."""

    def __init__(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, steps: int, zoh: bool):
        self.x, self.delta, self.B, self.steps, self.zoh = x, delta, B, steps, zoh
        self.A = A.t().contiguous()
        self.rates = self.A * _LOG2_E
        self.zero = (self.A == 0).to(A.dtype)
        self.inverse = (1 - self.zero) / (self.A + self.zero)
        size = len(x) * steps * A.numel()
        self.buffers = [x.new_empty(size) for _ in range(3 if zoh else 2)]
        self.gain: Tensor | None = None

    def span(self, k: int) -> slice:
        """The steps of chunk k."""
        return slice(k * self.steps, min((k + 1) * self.steps, self.x.shape[1]))

    def empty(self, k: int, buffer: Tensor) -> Tensor:
        """A part of the buffer as (rows, steps, state, channels)."""
        span = self.span(k)
        shape = (len(self.x), span.stop - span.start, *self.A.shape)
        return buffer[: math.prod(shape)].view(shape)

    def run(self, k: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """The factors a = exp(delta A) and the states h of chunk k, and `gain`; in the buffers."""
        span = self.span(k)
        a, h, *gain = (self.empty(k, buffer) for buffer in self.buffers)
        delta = self.delta[:, span, None]
        torch.mul(self.x[:, span, None], self.B[:, span, :, None], out=h)
        if gain:
            torch.expm1(torch.mul(delta, self.A, out=a), out=a)
            self.gain = torch.mul(a, self.inverse, out=gain[0]).addcmul_(delta, self.zero)
            h.mul_(self.gain)
            a.add_(1)
        else:
            # torch.exp takes three times as long as exp2 on some processors.
            torch.exp2(torch.mul(delta, self.rates, out=a), out=a)
        previous = start
        for a_t, h_t in zip(a.unbind(1), h.unbind(1), strict=True):
            h_t.addcmul_(a_t, previous)
            previous = h_t
        return a, h

    def gain_slope(self, k: int, a: Tensor) -> Tensor:
        """The slope of the gain in A, (delta a - gain) / A, by its series where that cancels."""
        assert self.gain is not None
        delta = self.delta[:, self.span(k), None]
        z = delta * self.A
        direct = (delta * a - self.gain) * self.inverse
        series = 1 / 2 + z * (1 / 3 + z * (1 / 8 + z * (1 / 30 + z / 144)))
        return torch.where(z.abs() < 0.03, series * delta**2, direct)


def _chunks_backward(
    chunks: _Chunks,
    C: Tensor,
    starts: Tensor,
    dy: Tensor,
    slopes: Sequence[Tensor],
    dA: Tensor | None,
) -> None:
    """Writes the gradients of some rows into `slopes` (x, delta, B, C) and adds to `dA`.

    g[t] = C[t] dy[t] + a[t+1] g[t+1] is the gradient of h[t]. From it, with w = g a h[t-1],
    dC = sum_d dy h, dB = sum_d g gain x, dx = sum_n g gain B, ddelta = sum_n w A, dA = sum w delta,
    and, where the gain depends on delta and A, its slopes times g B x; the one in delta is a.
    """
    dx, ddelta, dB, dC = slopes
    spare, carry = torch.empty_like(chunks.buffers[0]), None
    for k in reversed(range(len(starts))):
        span, start = chunks.span(k), starts[k]
        x, delta, B = chunks.x[:, span], chunks.delta[:, span], chunks.B[:, span]
        a, h = chunks.run(k, start)
        g = torch.mul(dy[:, span, None], C[:, span, :, None], out=chunks.empty(k, spare))
        if carry is not None:
            g[:, -1] += carry
        a_t, g_t = a.unbind(1), g.unbind(1)
        for t in reversed(range(len(g_t) - 1)):
            g_t[t].addcmul_(a_t[t + 1], g_t[t + 1])
        dC[:, span] = _over_channels(dy[:, span], h)
        if chunks.gain is not None and dA is not None:
            slope = chunks.gain_slope(k, a).mul_(g).mul_(x[:, :, None])
            dA += torch.einsum("btnd,btn->dn", slope, B)
        w = a.mul_(g)
        carry = w[:, 0].clone()
        from_gain = 0.0
        if chunks.gain is not None:
            from_gain = _over_states(B, w) * x
            g.mul_(chunks.gain)
        dB[:, span], dx[:, span] = _over_channels(x, g), _over_states(B, g)
        w[:, 1:].mul_(h[:, :-1])
        w[:, 0].mul_(start)
        if dA is not None:
            dA += (w * delta[:, :, None]).sum((0, 1)).t()
        ddelta[:, span] = w.mul_(chunks.A).sum(2) + from_gain


def _over_states(weights: Tensor, h: Tensor) -> Tensor:
    """sum_n weights[b, t, n] h[b, t, n, d], as (b, t, d)."""
    return torch.matmul(weights[:, :, None], h)[:, :, 0]


def _over_channels(weights: Tensor, h: Tensor) -> Tensor:
    """sum_d weights[b, t, d] h[b, t, n, d], as (b, t, n)."""
    return torch.matmul(weights[:, :, None], h.mT)[:, :, 0]


def _composed(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, zoh: bool) -> Tensor:
    """`SelectiveScan` in operations that autograd knows."""
    held = delta[..., None]
    gain = held * expm1_ratio(held * A) if zoh else 1.0
    h = linear_scan(torch.exp(held * A), gain * x[..., None] * B[:, :, None])
    return (h * C[:, :, None]).sum(-1)
