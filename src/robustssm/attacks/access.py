"""What an attacker has of a model: logits and input gradients, in pieces that fit, and counted."""

import itertools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from robustssm.core.errors import OutOfTime
from robustssm.core.types import LogitsFn

Measure = Callable[[Tensor, slice], Tensor]
"""Maps the logits of some rows, and which rows these are, to one loss per row."""

Freeze = Callable[[], AbstractContextManager[object]]

T = TypeVar("T")


class Climb(NamedTuple):
    """What one forward and one backward pass say about a batch of points."""

    logits: Float[Tensor, "batch classes"]
    loss: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch ..."]


class Ledger:
    """What a search may spend, and what it has spent."""

    def __init__(self, *, rows: int | None = None, deadline: float | None = None):
        """Starts with nothing spent.

        Args:
            rows: Most rows per call; None for no limit.
            deadline: Time, by time.monotonic, after which every call raises OutOfTime.
        """
        self.rows = rows
        self.deadline = deadline
        self.calls = 0
        self.forwards = 0
        """Rows that went forward."""
        self.backwards = 0
        """Rows that went backward."""
        self.on_call: Callable[[], None] | None = None
        """Told before every call, for progress."""


class Access:
    """Access to a function from inputs to logits; a plain function itself.

    Rows are independent, so a batch may be passed in pieces: at most `ledger.rows` at a time and,
    where memory runs out nevertheless, half as many from then on. Attacks may so make batches as
    large as their method likes; the answer is that of the whole batch, up to rounding.
    """

    def __init__(self, logits: LogitsFn, ledger: Ledger | None = None):
        """Wraps a function.

        Args:
            logits: Maps (batch, ...) to logits (batch, classes), row by row.
            ledger: Limits and counts; no limits and new counts if None.
        """
        self._logits = logits
        self.ledger = ledger or Ledger()
        self._known: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, logits: LogitsFn) -> "Access":
        """The argument itself if it is one already, so that counts and limits are kept."""
        return logits if isinstance(logits, Access) else cls(logits)

    def apart(self) -> "Access":
        """The same function under the same limits, with counts of its own: for another thread."""
        return Access(self._logits, Ledger(rows=self.ledger.rows, deadline=self.ledger.deadline))

    @property
    def function(self) -> LogitsFn:
        """The function itself."""
        return self._logits

    def frozen(self) -> AbstractContextManager[object]:
        """The function's own `frozen` context if it has one (`core.types.Freezable`)."""
        return frozen(self._logits)

    def after(self, first: Callable[[Tensor], Tensor]) -> "Access":
        """Access through a map, row by row, that makes inputs of points; one ledger for both."""
        inner = self._logits
        return Access(lambda points: inner(first(points)), self.ledger)

    def knowing(self, points: Float[Tensor, "batch ..."], logits: Tensor) -> "Access":
        """The same access, which need not be asked for the logits of these very `points`."""
        informed = Access(self._logits, self.ledger)
        informed._known = (points, logits)
        return informed

    def known(self, points: Float[Tensor, "batch ..."]) -> Tensor | None:
        """Logits of `points` if that very tensor was said to `knowing`, else None."""
        return self._known[1] if self._known and self._known[0] is points else None

    def __call__(self, points: Float[Tensor, "batch ..."]) -> Tensor:
        """The function itself: one call, whole, with a graph if gradients are on."""
        self._count(len(points))
        return self._logits(points)

    def logits(self, points: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits without a gradient, in the dtype of `points`."""

        def work(_: slice, piece: Tensor) -> Tensor:
            with torch.no_grad():  # of this thread
                return self._logits(piece).to(piece.dtype)

        return _joined(self._in_pieces(points, work))

    def climb(self, points: Float[Tensor, "batch ..."], measure: Measure) -> Climb:
        """Logits, the loss of every row, and its gradient with respect to that row.

        Losses are summed, so the gradient of a row does not depend on its batch, and only the
        gradient of the points is asked for, so that parameters keep theirs.

        Raises:
            ValueError: If the logits do not depend differentiably on the input.
        """

        def work(at: slice, piece: Tensor) -> Climb:
            piece = piece.detach().requires_grad_()
            with torch.enable_grad():
                # A model under autocast answers in less precision than the points have.
                logits = self._logits(piece).to(piece.dtype)
                loss = measure(logits, at)
            return Climb(logits.detach(), loss.detach(), self._gradient(loss, piece))

        pieces = self._in_pieces(points, work)
        self.ledger.backwards += len(points)
        return Climb(*(_joined(parts) for parts in zip(*pieces, strict=True)))

    def _gradient(self, loss: Tensor, piece: Tensor) -> Tensor:
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss.sum(), piece, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "A gradient attack needs logits that depend differentiably on the inputs; got "
                "logits without a gradient. Remove `no_grad` or `detach` from the model, or use a "
                "black-box attack."
            )
        return gradient

    def _in_pieces(self, points: Tensor, work: Callable[[slice, Tensor], T]) -> list[T]:
        while True:
            at = _slices(len(points), self.ledger.rows)
            try:
                return [self._counted(work, rows, points[rows]) for rows in at]
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                longest = max(rows.stop - rows.start for rows in at)
                if longest <= 1 or not ran_out_of_memory(error):
                    raise
                self.ledger.rows = longest // 2
                if points.is_cuda:
                    torch.cuda.empty_cache()

    def _counted(self, work: Callable[[slice, Tensor], T], rows: slice, piece: Tensor) -> T:
        self._count(len(piece))
        return work(rows, piece)

    def _count(self, rows: int) -> None:
        ledger = self.ledger
        if ledger.deadline is not None and time.monotonic() > ledger.deadline:
            raise OutOfTime("The time limit was reached.")
        if ledger.on_call is not None:
            ledger.on_call()
        ledger.calls += 1
        ledger.forwards += rows


def _slices(n: int, rows: int | None) -> list[slice]:
    """Pieces of nearly equal length, at most `rows` each; one empty piece for nothing."""
    count = max(1, math.ceil(n / rows)) if rows else 1
    ends = [n * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def frozen(logits: LogitsFn) -> AbstractContextManager[object]:
    """Lets a `core.types.Freezable` model prepare once, for these lines, what no input changes."""
    # Asked for by name: wrappers forward attributes, which protocol checks of newer Pythons miss.
    freeze: Freeze | None = getattr(logits, "frozen", None)
    return nullcontext() if freeze is None else freeze()


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory, of a device or of the host, was not enough."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "allocate memory" in text or "not enough memory" in text
    )


def _joined(pieces: "list[Tensor] | tuple[Tensor, ...]") -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces))
