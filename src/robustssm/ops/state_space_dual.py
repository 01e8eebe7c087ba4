"""The scan of Mamba-2 (dao2024transformers): a linear recurrence as products of matrices.

Every head has one number a and a state of n rows and p columns. As the decay is one number, what
reaches step i from step j is (C[i] . B[j]) exp(sum of delta a over j < s <= i) delta[j] u[j]: the
scan is causal attention without softmax, and within a chunk of time it is a matrix product.

Milliseconds on one core with AVX-512, forward and all gradients, and in brackets also the gradients
of a norm of these, as gradient matching needs them:

| batch, length, heads, width, states | compiled | chunked |
|---|---|---|
| 16, 196, 2, 64, 16 | 5.1 (31) | 8.9 (28) |
| 16, 196, 2, 64, 64 | 14 (56) | 15 (45) |
| 16, 196, 2, 64, 128 | 25 (97) | 23 (85) |
| 4, 1024, 4, 64, 16 | 11 (76) | 22 (62) |

Legend: b batch, t time, k chunk, i and j steps of a chunk, h head, p width of a head, n state.
"""

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from robustssm.core.errors import violation
from robustssm.ops.kernels import native
from robustssm.ops.kernels.cpu_selective_scan import SelectiveScan
from robustssm.ops.scan import linear_scan

Form = Literal["chunked", "compiled"]

COMPILED_UP_TO = 64
"""Most states that Mamba's compiled scan serves better than matrix products (table above)."""


def state_space_dual(
    u: Float[Tensor, "batch time heads width"],
    delta: Float[Tensor, "batch time heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " heads"],
    *,
    gate: Float[Tensor, "batch time heads width"] | None = None,
    chunk: int = 32,
    form: Form | None = None,
) -> Float[Tensor, "batch time heads width"]:
    """Runs the selective state space model of Mamba-2, whose heads share B and C.

    h[t] = exp(delta[t] A) h[t-1] + B[t] (delta[t] u[t])^T,   y[t] = h[t]^T C[t] + D u[t].

    Differentiable any number of times; second derivatives are those of matrix products in either
    form.

    Args:
        u: Inputs, (batch, time, heads, width).
        delta: Step sizes, (batch, time, heads), not negative.
        A: One number for each head, (heads,); negative is stable.
        B: Input vectors, (batch, time, state).
        C: Output vectors, (batch, time, state).
        D: Skip, (heads,).
        gate: If given, the result is y * silu(gate).
        chunk: Longest chunk of time that is one matrix product; it changes no number but by
            rounding.
        form: How it is computed; by default the faster one. "compiled" is Mamba's scan, for float32
            on a CPU.

    Returns:
        y, (batch, time, heads, width), in the dtype of `u`.

    Raises:
        ValueError: If shapes or the chunk do not fit, or that form cannot take these tensors.

    Numerics: relative to the largest entry of the float64 result, y and the gradients of sequences
        are within 2e-6 in float32; those of A and D, sums over all steps that may cancel, within
        5e-5 in the chunked form and 2e-5 in the compiled one.
    Source: dao2024transformers, sections 5 and 6. Oracle: `state_space_dual_reference`
        (tests/ops/test_state_space_dual.py).
    """
    _check(u, delta, A, B, C, D, gate, chunk)
    given = [x for x in (u, delta, A, B, C, D, gate) if x is not None]
    able = native.available(*given)
    if form is None:
        form = "compiled" if able and B.shape[-1] <= COMPILED_UP_TO else "chunked"
    if form == "chunked":
        y = _chunked(u, delta, A, B, C, D, chunk)
        return y if gate is None else y * F.silu(gate)
    if not able:
        must = "have float32 tensors on the CPU, and kernels that were built"
        advice = "Leave form at None."
        raise ValueError(violation("`state_space_dual(form='compiled')`", must, u.dtype, advice))
    return _compiled(u, delta, A, B, C, D, gate, chunk)


def state_space_dual_reference(
    u: Float[Tensor, "batch time heads width"],
    delta: Float[Tensor, "batch time heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " heads"],
    *,
    gate: Float[Tensor, "batch time heads width"] | None = None,
) -> Float[Tensor, "batch time heads width"]:
    """`state_space_dual`, as the loop that defines it."""
    h, outputs = u.new_zeros(len(u), *u.shape[2:], B.shape[-1]), []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True):
        driven = (delta_t[..., None] * u_t)[..., None] * B_t[:, None, None]
        h = torch.exp(delta_t * A)[..., None, None] * h + driven
        outputs.append((h * C_t[:, None, None]).sum(-1) + D[:, None] * u_t)
    y = torch.stack(outputs, 1)
    return y if gate is None else y * gate * torch.sigmoid(gate)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor | None,
    chunk: int,
) -> None:
    """Compiled code reads what it was told is there."""
    batch, time, heads, _ = u.shape
    vectors = (batch, time, B.shape[-1])
    needed = (batch, time, heads), (heads,), vectors, vectors, (heads,), tuple(u.shape)
    for name, x, shape in zip(
        ("delta", "A", "B", "C", "D", "gate"), (delta, A, B, C, D, gate), needed, strict=True
    ):
        if x is not None and x.shape != shape:
            must = f"have shape {shape} for u of shape {tuple(u.shape)}"
            got = tuple(x.shape)
            raise ValueError(violation(f"`state_space_dual({name}=...)`", must, got))
    if chunk < 1:
        raise ValueError(violation("`state_space_dual(chunk=...)`", "be at least 1", chunk))


def _chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int
) -> Tensor:
    """In torch operations: within chunks by matrix products, between them by their last states."""
    time, (heads, width) = u.shape[1], u.shape[2:]
    chunks = math.ceil(time / chunk)
    size = math.ceil(time / chunks)  # all chunks alike: fewer steps than chunks are made up
    x, logs, B, C = (
        _cut(v, chunks, size) for v in (delta[..., None] * u, delta * A, B, C)
    )  # made-up steps decay nothing and add nothing
    # In float64: their differences are small where the sums are large.
    sums = logs.double().cumsum(2)
    by_head = sums.transpose(2, 3)
    scores = (C @ B.mT)[:, :, None] * _Decays.apply(by_head, u.dtype)
    y = (scores @ x.transpose(2, 3)).transpose(2, 3)
    if chunks > 1:
        onwards = torch.exp(sums[:, :-1, -1:] - sums[:, :-1]).to(u.dtype)
        added = B[:, :-1].mT @ (x[:, :-1] * onwards[..., None]).flatten(3)
        whole = sums[:, :-1, -1].exp().to(u.dtype)[:, :, None, :, None]
        factors = whole.expand(*added.shape[:3], heads, width).flatten(3)
        before = F.pad(linear_scan(factors, added), (0, 0, 0, 0, 1, 0))
        earlier = (C @ before).unflatten(-1, (heads, width))
        y = torch.addcmul(y, earlier, sums.exp().to(u.dtype)[..., None])
    return torch.addcmul(y.flatten(1, 2)[:, :time], D[:, None], u)


def _cut(x: Tensor, chunks: int, size: int) -> Tensor:
    """(batch, time, ...) to (batch, chunks, size, ...), zeros at the end."""
    missing = chunks * size - x.shape[1]
    if missing:
        x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, missing])
    return x.unflatten(1, (chunks, size))


class _Decays(Function):
    """exp(sums[i] - sums[j]) for i >= j, else 0; keeps nothing but that."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, dtype: torch.dtype) -> Tensor:
        size = sums.shape[-1]
        decays = (sums[..., :, None] - sums[..., None, :]).to(dtype)
        later = torch.ones(size, size, dtype=torch.bool, device=sums.device).triu(1)
        decays.masked_fill_(later, -math.inf).exp_()
        ctx.save_for_backward(decays)
        return decays

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (decays,) = ctx.saved_tensors
        # On the diagonal nothing depends on the sums, and its large slopes would cancel inexactly.
        slopes = (gradients[0] * decays).tril(-1)
        return (slopes.sum(-1) - slopes.sum(-2)).double(), None


def _compiled(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gate: Tensor | None,
    chunk: int,
) -> Tensor:
    """Mamba's scan, all channels of a head and all their states alike."""
    heads, width = u.shape[2:]
    inputs = (
        u.flatten(2),
        delta[..., None].expand_as(u).flatten(2),
        A[:, None, None].expand(heads, width, B.shape[-1]).flatten(0, 1),
        B,
        C,
        D[:, None].expand(heads, width).flatten(),
        None,
        None if gate is None else gate.flatten(2),
    )
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    again = functools.partial(_of_channels, width=width, chunk=chunk)
    y: Any = SelectiveScan.apply(*inputs, False, keep, again)
    return y.unflatten(-1, (heads, width))


def _of_channels(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: None,
    gate: Tensor | None,
    *,
    width: int,
    chunk: int,
) -> Tensor:
    """The same in torch operations, of what `_compiled` made for every channel.

    A head's first channel speaks for all; gradients that are summed over a head are the same.
    """
    del bias
    of_heads = u.unflatten(-1, (-1, width)), delta[..., ::width], A[::width, 0]
    y = _chunked(*of_heads, B, C, D[::width], chunk).flatten(2)
    return y if gate is None else y * F.silu(gate)
