"""One stage of an attack on a chunk of examples: part by part, in threads, each part kept."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack, Candidates
from robustssm.core.rng import Noise
from robustssm.evaluation.journal import Journal, Piece, Unit
from robustssm.evaluation.problem import Batch, Problem


@dataclass(frozen=True, kw_only=True)
class Search:
    """An attack on examples, in parts that depend on nothing but their number."""

    problem: Problem
    attack: Attack
    rows: Tensor
    """Which examples of the data."""
    batch: Batch
    """These examples."""
    parts: Sequence[slice]
    """Of the rows; together all of them."""
    noise: Callable[[Tensor], Noise]
    """The streams of some rows."""
    unit: Unit
    journal: Journal
    """Keeps every finished part of several, until the unit is finished."""

    def run(self, pool: ThreadPoolExecutor | None, show: Callable[[int, int], None]) -> Candidates:
        """What the attack finds; passes are added to the problem's ledger.

        Args:
            pool: Threads that parts may go to; what is found does not depend on them.
            show: Told now and then how many examples went forward and backward so far.
        """
        accesses = [self.problem.access.apart() for _ in self.parts]

        def tell() -> None:
            ledgers = [access.ledger for access in accesses]
            show(sum(each.forwards for each in ledgers), sum(each.backwards for each in ledgers))

        if pool is None or len(self.parts) == 1:
            for access in accesses:
                access.ledger.on_call = tell
            found = [self._part(number, access) for number, access in enumerate(accesses)]
        else:
            found = self._in_threads(pool, accesses, tell)
        ledger = self.problem.access.ledger
        for access in accesses:
            ledger.calls += access.ledger.calls
            ledger.forwards += access.ledger.forwards
            ledger.backwards += access.ledger.backwards
        return Candidates(*(torch.cat(each) for each in zip(*found, strict=True)))

    def _in_threads(
        self, pool: ThreadPoolExecutor, accesses: Sequence[Access], tell: Callable[[], None]
    ) -> list[Candidates]:
        futures = [pool.submit(self._part, *each) for each in enumerate(accesses)]
        try:
            while wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION).not_done:
                tell()
                for future in futures:
                    if future.done():
                        future.result()  # raises what went wrong there
            return [future.result() for future in futures]
        except BaseException:
            for future, access in zip(futures, accesses, strict=True):
                future.cancel()
                access.ledger.deadline = -math.inf  # those under way stop at their next call
            raise

    def _part(self, number: int, access: Access) -> Candidates:
        some, ledger = self.parts[number], access.ledger
        rows, x = self.rows[some], self.batch.x[some]
        kept = self.journal.load_piece(self.unit, number) if len(self.parts) > 1 else None
        if kept is not None and torch.equal(kept.rows, rows):
            ledger.calls, ledger.forwards, ledger.backwards = kept.passes
            return Candidates(kept.points.to(x.device), kept.part.to(x.device))
        found = self.attack.search(
            access,
            x,
            self.batch.y[some],
            threat=self.problem.threat,
            noise=self.noise(rows),
            mask=None if self.batch.mask is None else self.batch.mask[some],
        )
        if len(self.parts) > 1:
            passes = ledger.calls, ledger.forwards, ledger.backwards
            piece = Piece(rows, found.points.cpu(), found.part.cpu(), passes)
            self.journal.store_piece(self.unit, number, piece)
        return found
