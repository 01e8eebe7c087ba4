"""The gates of a Mega layer in compiled code: csrc/mega_gates.h.

Four gates are columns of one matrix. The backward passes of those that use them write straight into
columns of one gradient of that matrix (`Room`), instead of tensors that would be joined afterwards.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from robustssm.ops.kernels import native
from robustssm.ops.kernels.second_order import differentiable_gradients

_ITEM_ROWS = 64  # GATE_ROWS: each has its own sums for the gradients of gain and offset

_silu = native.function("silu", "ppi")
_silu_gradient = native.function("silu_gradient", "pppi")
_qk = native.function("mega_qk", "p" * 5 + "i" * 3)
_qk_gradients = native.function("mega_qk_gradients", "p" * 6 + "i" * 6)
_reset = native.function("mega_reset", "ppp" + "i" * 4)
_reset_gradients = native.function("mega_reset_gradients", "p" * 5 + "i" * 6)
_update = native.function("mega_update", "p" * 5 + "i" * 6)
_update_gradients = native.function("mega_update_gradients", "p" * 8 + "i" * 9)


class Room:
    """Where the gradient of the matrix of gates is gathered during one backward pass.

    What was handed out once is never written to again, as somebody may keep it: a pass may also end
    before it comes to the gates.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int]):
        """For a matrix of that shape, cut into columns of these widths."""
        self.shape, self.widths = shape, list(widths)
        self._matrix: Tensor | None = None
        self._reset_is_free = False

    def open(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last columns of a new matrix."""
        self._matrix, self._reset_is_free = like.new_empty(self.shape), True
        first, *_, last = self._matrix.split(self.widths, -1)
        return first, last

    def for_reset(self, like: Tensor) -> Tensor:
        """The third columns of the open matrix, or a tensor of its own."""
        if self._matrix is None or not self._reset_is_free:
            return like.new_empty(like.shape)
        self._reset_is_free = False
        return self._matrix.split(self.widths, -1)[2]

    def close(self, du: Tensor, dr: Tensor, dh_x: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix with these gradients in it, and its second columns, still to be filled.

        Only gradients that autograd has added up, or that came from elsewhere, must be copied.
        """
        matrix, self._matrix = self._matrix, None
        if matrix is not None:
            u, _, _, h_x = matrix.split(self.widths, -1)
            if not (_same_place(u, du) and _same_place(h_x, dh_x)):
                matrix = None
        if matrix is None:
            matrix = du.new_empty(self.shape)
        u, z, r, h_x = matrix.split(self.widths, -1)
        for column, gradient in ((u, du), (r, dr), (h_x, dh_x)):
            if not _same_place(column, gradient):
                column.copy_(gradient)
        return matrix, z


class Silu(Function):
    """x sigmoid(x) of x that is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _silu(x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor | None:
        (g,), (x,) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return differentiable_gradients(F.silu, (x,), (True,), g)[0]
        g, dx = _laid(g), torch.empty_like(x)
        _silu_gradient(x, g, dx, x.numel())
        return dx


class Gates(Function):
    """u, q, k, r and h_x of m; u, r and h_x are views of it."""

    @staticmethod
    def forward(
        ctx: Any, m: Tensor, gain: Tensor, offset: Tensor, room: Room
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(m, gain, offset)
        ctx.room = room
        u, z, r, h_x = m.split(room.widths, -1)
        q, k = m.new_empty(z.shape), m.new_empty(z.shape)
        z, z_row = _rows(z)
        _qk(z, gain.contiguous(), offset.contiguous(), q, k, len(z), z.shape[1], z_row)
        return u, q, k, r, h_x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (m, gain, offset), wanted = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            joined = _joined(ctx.room.widths)
            found = differentiable_gradients(
                joined, (m, gain, offset), wanted, torch.cat(gradients, -1)
            )
            return *found, None
        du, dq, dk, dr, dh_x = gradients
        dm, dz = ctx.room.close(du, dr, dh_x)
        z, z_row = _rows(m.split(ctx.room.widths, -1)[1])
        (dq, dq_row), (dk, dk_row) = _rows(dq), _rows(dk)
        dz, dz_row = _rows(dz)
        (rows, width), sums = z.shape, None
        if wanted[1] or wanted[2]:
            sums = m.new_empty(-(-rows // _ITEM_ROWS), 4, width)
        places = z, gain.contiguous(), dq, dk, dz, sums
        _qk_gradients(*places, rows, width, z_row, dq_row, dk_row, dz_row)
        if sums is None:
            return dm, None, None, None
        dgain, doffset = sums.sum(0).split(2)
        return dm, dgain if wanted[1] else None, doffset if wanted[2] else None, None


class Reset(Function):
    """read * silu(r)."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, r: Tensor, room: Room) -> Tensor:
        ctx.save_for_backward(read, r)
        ctx.room = room
        out = read.new_empty(read.shape)
        (read, read_row), (r, r_row) = _rows(read), _rows(r)
        _reset(read, r, out, *read.shape, read_row, r_row)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (read, r) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            wanted = ctx.needs_input_grad
            return *differentiable_gradients(reset_reference, (read, r), wanted, g), None
        dread, dr = read.new_empty(read.shape), ctx.room.for_reset(g)
        (read, read_row), (r, r_row), (g, g_row) = _rows(read), _rows(r), _rows(g)
        strides = read_row, r_row, g_row, _rows(dr)[1]
        _reset_gradients(read, r, g, dread, dr, *read.shape, *strides)
        return dread, dr, None


class Update(Function):
    """x + sigmoid(u) (silu(h_x + hidden) - x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, h_x: Tensor, hidden: Tensor, room: Room) -> Tensor:
        ctx.save_for_backward(x, u, h_x, hidden)
        ctx.room = room
        out = x.new_empty(x.shape)
        parts, strides = zip(*(_rows(part) for part in (x, u, h_x, hidden)), strict=True)
        _update(*parts, out, *parts[0].shape, *strides)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), inputs = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            wanted = ctx.needs_input_grad
            return *differentiable_gradients(update_reference, inputs, wanted, g), None
        dx = g.new_empty(g.shape)
        du, dh = ctx.room.open(g)
        parts, strides = zip(*(_rows(part) for part in (*inputs, g)), strict=True)
        rows = _rows(du)[1], _rows(dh)[1]
        _update_gradients(*parts, dx, du, dh, *parts[0].shape, *strides, *rows)
        return dx, du, dh, dh, None


def gates_reference(
    m: Tensor, gain: Tensor, offset: Tensor, widths: Sequence[int]
) -> tuple[Tensor, ...]:
    """What `Gates` returns, in torch operations."""
    u, z, r, h_x = m.split(list(widths), -1)
    z = F.silu(z)
    q, k = (torch.addcmul(b, z, a) for a, b in zip(gain, offset, strict=True))
    return u, q, k, r, h_x


def reset_reference(read: Tensor, r: Tensor) -> Tensor:
    """The same as `Reset` in torch operations."""
    return read * F.silu(r)


def update_reference(x: Tensor, u: Tensor, h_x: Tensor, hidden: Tensor) -> Tensor:
    """The same as `Update` in torch operations."""
    return x + torch.sigmoid(u) * (F.silu(h_x + hidden) - x)


def _joined(widths: Sequence[int]) -> Any:
    def joined(m: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        return torch.cat(gates_reference(m, gain, offset, widths), -1)

    return joined


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """(rows, width), each row of neighbours in memory, and how far apart rows are."""
    x = _laid(x.flatten(0, -2), whole=False)
    return x, x.stride(0)


def _laid(x: Tensor, *, whole: bool = True) -> Tensor:
    x = x.resolve_neg()
    return x.contiguous() if whole or x.stride(1) != 1 else x


def _same_place(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )
