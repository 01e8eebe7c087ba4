"""A batch in pieces, one after the other or one per process, with the loss and gradient of the
whole.

Losses are means over examples, so that of a batch is the mean of its pieces', weighted by their
sizes. Every piece has a generator of its own, and all are taken through each update together: the
optimiser steps when every piece has been backward.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.core.placement import Placement
from robustssm.core.rng import Noise
from robustssm.training.division import (
    PieceTooLarge,
    Share,
    out_of_memory,
    require_divisible,
    shares,
)
from robustssm.training.objective import Memory, Objective, Update


class Pieces:
    """The updates of one batch, or of this process's share of it, piece by piece."""

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        memory: Memory,
        noise: Noise,
        placement: Placement,
        count: int = 1,
    ):
        """Begins; nothing is computed before `advance`.

        Args:
            objective: What the batch is worth.
            model: In train mode.
            x: Inputs of the whole batch, those of other processes included.
            y: Classes of the whole batch.
            memory: Of the objective, for the whole batch; changed by the last `advance`.
            noise: One stream per example.
            placement: Device, precision and processes.
            count: Pieces per process; never more than its examples.

        Raises:
            Inapplicable: If pieces are asked for and the outcome would not be that of the whole.
        """
        self._placement, self._memory = placement, memory
        whole = count == 1 and placement.processes == 1
        if not whole:
            require_divisible(objective, model, count=count)
        mine = shares(len(y), placement.processes)[placement.rank]
        # Without examples of its own a process goes along with one that counts nothing.
        self._idle = mine.count == 0
        parts = (
            [Share(slice(0, 1), 0.0)]
            if self._idle
            else shares(len(y), min(count, mine.count), rows=mine.rows)
        )
        self._whole, self._count = whole, len(y)
        noise = noise if whole else noise.rows(len(y))
        self._pieces: list[tuple[Share, Memory, Iterator[Update]]] = []
        for share in parts:
            own = memory if whole else _own(memory, share.rows, copy=self._idle)
            rows = torch.arange(share.rows.start, share.rows.stop, device=x.device)
            updates = objective.updates(
                model,
                x if whole else x[share.rows],
                y if whole else y[share.rows],
                memory=own,
                noise=noise if whole else noise.select(rows),
            )
            self._pieces.append((share, own, updates))

    def advance(self) -> Update | None:
        """Takes every piece through its next update and that backward; None at the end.

        Returns:
            Loss and parts weighted and summed over the pieces, detached; gradients lie in the
            parameters. Over all processes these sums are those of the batch.

        Raises:
            PieceTooLarge: If memory is not enough for a piece.
        """
        try:
            found = [self._backward(number) for number in range(len(self._pieces))]
        except Exception as error:
            if out_of_memory(error):
                raise PieceTooLarge(str(error).partition("\n")[0]) from error
            raise
        if found[0] is None:
            assert all(each is None for each in found), "pieces must have equally many updates"
            self._remember()
            return None
        updates = [each for each in found if each is not None]
        assert len({each.step for each in updates}) == 1 and len(updates) == len(found)
        if self._whole:
            return updates[0]
        names = updates[0].parts
        return Update(
            loss=torch.stack([each.loss for each in updates]).sum(),
            parts={name: torch.stack([u.parts[name] for u in updates]).sum() for name in names},
            step=updates[0].step,
        )

    @contextmanager
    def closing(self) -> Iterator["Pieces"]:
        """Closes the generators on leaving, so that what they lent to a backward pass is back."""
        with ExitStack() as stack:
            for _, _, updates in self._pieces:
                close = getattr(updates, "close", None)
                if close is not None:
                    stack.callback(close)
            yield self

    def _backward(self, number: int) -> Update | None:
        """One piece's next update, detached and weighted."""
        share, _, updates = self._pieces[number]
        with self._aside(number), self._placement.autocast(), self._summing(share.weight):
            update = next(updates, None)
        if update is None:
            return None
        if self._whole:
            self._placement.backward(update.loss)
            return Update(loss=update.loss.detach(), parts=update.parts, step=update.step)
        self._placement.backward(share.weight * update.loss)
        return Update(
            loss=share.weight * update.loss.detach(),
            parts={name: share.weight * part for name, part in update.parts.items()},
            step=update.step,
        )

    def _summing(self, weight: float) -> AbstractContextManager[object]:
        if self._placement.processes == 1:
            return nullcontext()
        return _summing(lambda tensor: self._placement.total(weight * tensor))

    def _aside(self, number: int) -> AbstractContextManager[object]:
        """Only the first piece warns, whose figures are those that are remembered."""
        if number == 0 and self._placement.rank == 0:
            return nullcontext()
        return _without_warnings()

    def _remember(self) -> None:
        """Puts the pieces' memory together, and that of all processes."""
        if self._whole or not self._memory:
            return
        if not self._idle:
            for number, (share, own, _) in enumerate(self._pieces):
                for name, tensor in self._memory.items():
                    if tensor.ndim:
                        tensor[share.rows].copy_(own[name])
                    elif number == 0:
                        tensor.copy_(own[name])
        if self._placement.processes > 1:
            self._exchange()

    def _exchange(self) -> None:
        """Gives every process the memory of all: its rows from each, scalars from the first."""
        mine = []
        for tensor in self._memory.values():
            kept = tensor[: self._count] if tensor.ndim else tensor
            filled = torch.zeros_like(kept)
            if tensor.ndim and not self._idle:
                rows = slice(self._pieces[0][0].rows.start, self._pieces[-1][0].rows.stop)
                filled[rows] = kept[rows]
            elif not tensor.ndim and self._placement.rank == 0:
                filled.copy_(kept)
            mine.append((kept, filled))
        whole = self._placement.total(torch.cat([filled.reshape(-1) for _, filled in mine]))
        for (kept, _), part in zip(mine, whole.split([k.numel() for k, _ in mine]), strict=True):
            kept.copy_(part.view_as(kept))


def of_whole_batch(means: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Means over the whole batch of what are means over the rows that an objective was given.

    For objectives that use a gradient themselves, in place of leaving it to the loop. Where several
    processes share the batch, all must ask; elsewhere it returns what it got.

    Args:
        means: Gradients of a loss that is a mean over examples; None stays None.
    """
    total = _TOTAL.get()
    if total is None:
        return list(means)
    there = [each for each in means if each is not None]
    if not there:
        return list(means)
    flat = total(torch.cat([each.reshape(-1) for each in there]))
    parts = iter(flat.split([each.numel() for each in there]))
    return [None if each is None else next(parts).view_as(each) for each in means]


_TOTAL: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("total", default=None)


@contextmanager
def _summing(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What `of_whole_batch` does in the enclosed lines."""
    token = _TOTAL.set(total)
    try:
        yield
    finally:
        _TOTAL.reset(token)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _own(memory: Memory, rows: slice, *, copy: bool) -> Memory:
    """The memory of some places: views of their rows, copies of scalars."""
    own = {name: tensor[rows] if tensor.ndim else tensor.clone() for name, tensor in memory.items()}
    return {name: tensor.clone() for name, tensor in own.items()} if copy else own
