"""The gates of a Mega layer: all that is done entry by entry between its linear maps.

Compiled on the CPU in float32, one pass each way; else torch operations. m = W_m (...) holds the
update gate u, what queries and keys are made of z, the reset gate r and the candidate's part h_x.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustssm.ops.kernels import cpu_mega_gates, native

_LEAST_ENTRIES = 2**12  # below, a call of compiled code costs more than it saves


class Gates(NamedTuple):
    """What `gates` makes of m, (..., width) each."""

    u: Float[Tensor, "*rows d_model"]
    """Update gate before its sigmoid."""
    q: Float[Tensor, "*rows d_attention"]
    k: Float[Tensor, "*rows d_attention"]
    r: Float[Tensor, "*rows d_hidden"]
    """Reset gate before its SiLU."""
    h_x: Float[Tensor, "*rows d_model"]
    """The candidate's part that does not depend on what is read."""
    room: cpu_mega_gates.Room | None
    """Where compiled code gathers the gradient of m; None in torch operations."""


def silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """SiLU: x sigmoid(x).

    Args:
        x: Of any shape.

    Returns:
        Of the same shape and dtype. Differentiable any number of times.

    Numerics: float32 is within 9e-8 of the largest entry of the float64 result. 2^19 entries on one
        core with AVX-512 take 0.08 ms forward and 0.10 ms back; torch's own 0.11 and 0.14 ms.
    Oracle: torch.nn.functional.silu in float64 (tests/ops/test_mega_gates.py).
    """
    if x.is_contiguous() and _is_compiled(x):
        return cpu_mega_gates.Silu.apply(x)  # pyright: ignore[reportReturnType]
    return F.silu(x)


def gates(
    m: Float[Tensor, "*rows width"],
    gain: Float[Tensor, "2 d_attention"],
    offset: Float[Tensor, "2 d_attention"],
    widths: Sequence[int],
) -> Gates:
    """(u, z, r, h_x) = m, q = silu(z) * gain_0 + offset_0, k = silu(z) * gain_1 + offset_1.

    Args:
        m: (..., sum of the widths).
        gain: Of queries and of keys, (2, d_attention).
        offset: The same.
        widths: Of u, z, r and h_x: d_model, d_attention, d_hidden and d_model.

    Returns:
        Gates, differentiable any number of times; u, r and h_x are views of `m`.

    Numerics: float32 is within 1.2e-7 of the largest entry of the float64 result, the gradient of m
        within 2.3e-7, those of gain and offset from 8,192 rows within 3.7e-7.
    Oracle: torch in float64 (tests/ops/test_mega_gates.py).
    """
    room = None
    if _is_compiled(m, gain, offset):
        room = cpu_mega_gates.Room(m.shape, widths)
        found = cpu_mega_gates.Gates.apply(m, gain, offset, room)
    else:
        found = cpu_mega_gates.gates_reference(m, gain, offset, widths)
    u, q, k, r, h_x = found  # pyright: ignore[reportGeneralTypeIssues]
    return Gates(u, q, k, r, h_x, room)


def reset(read: Float[Tensor, "*rows d_hidden"], made: Gates) -> Float[Tensor, "*rows d_hidden"]:
    """What was read through the reset gate: read * silu(r).

    Args:
        read: What attention read, (..., d_hidden).
        made: The gates.

    Returns:
        (..., d_hidden), differentiable any number of times.

    Numerics: float32 is within 1.1e-7 of the largest entry of the float64 result, as is the
        gradient of `read`.
    Oracle: torch in float64 (tests/ops/test_mega_gates.py).
    """
    if made.room is not None and _is_compiled(read):
        return cpu_mega_gates.Reset.apply(read, made.r, made.room)  # pyright: ignore[reportReturnType]
    return cpu_mega_gates.reset_reference(read, made.r)


def update(
    x: Float[Tensor, "*rows d_model"], hidden: Float[Tensor, "*rows d_model"], made: Gates
) -> Float[Tensor, "*rows d_model"]:
    """Goes part of the way to a candidate: x + sigmoid(u) (silu(h_x + hidden) - x).

    Args:
        x: (..., d_model).
        hidden: The candidate's part that depends on what was read, (..., d_model).
        made: The gates.

    Returns:
        (..., d_model), differentiable any number of times.

    Numerics: float32 is within 1.5e-7 of the largest entry of the float64 result, the gradients of
        `x` and `hidden` within 3.8e-7. Finite for all entries up to 1e4.
    Oracle: torch in float64 (tests/ops/test_mega_gates.py).
    """
    if made.room is not None and _is_compiled(x, hidden):
        parts = x, made.u, made.h_x, hidden
        return cpu_mega_gates.Update.apply(*parts, made.room)  # pyright: ignore[reportReturnType]
    return cpu_mega_gates.update_reference(x, made.u, made.h_x, hidden)


def _is_compiled(x: Tensor, *others: Tensor) -> bool:
    return (
        x.ndim > 1
        and x.numel() >= _LEAST_ENTRIES
        and native.available(x, *others)
        and not torch.is_autocast_enabled("cpu")
    )
