"""The work of an evaluation: every attack on every chunk, each outcome verified and kept."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustssm.attacks.base import Attack, Candidates
from robustssm.core.errors import CorruptFile, OutOfTime
from robustssm.core.rng import Noise, Streams
from robustssm.evaluation.journal import Journal, Outcome, Unit
from robustssm.evaluation.plan import Cost, Job, chunks, parts
from robustssm.evaluation.problem import Batch, Problem
from robustssm.evaluation.search import Search


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far an evaluation has come."""

    attack: str
    """Label of what runs now; empty before the first attack."""
    share: float
    """Of the whole evaluation, 0 to 1."""
    seconds_left: float | None
    """At most so long, as attacks skip what is fooled; None if not known."""
    right: int
    """Examples of those examined that no attack has fooled so far."""
    seen: int
    """Examples that were right on their clean input and have been attacked so far."""


@runtime_checkable
class Progress(Protocol):
    """Told now and then how far an evaluation has come."""

    def __call__(self, status: Status) -> None:
        """Shows it."""
        ...


@dataclass
class Meter:
    """Time spent and time left, by the passes that are planned."""

    progress: Progress | None
    cost: Cost
    num_classes: int
    total: float = 0.0
    done: float = 0.0
    right: int = 0
    seen: int = 0
    attack: str = ""
    _began: float = field(default_factory=time.monotonic)
    _told: float = 0.0

    def of(self, attack: Attack, rows: int) -> float:
        """Planned seconds of an attack on so many examples."""
        return rows * self.cost.of(attack, self.num_classes)

    def show(self, share: float = 0.0, *, now: bool = False) -> None:
        """Tells, at most five times a second; `share` of a unit in seconds is under way."""
        if self.progress is None or (not now and time.monotonic() - self._told < 0.2):
            return
        self._told = time.monotonic()
        done = self.done + share
        left: float | None = self.total
        if self.done > 0:
            left = (self._told - self._began) * max(0.0, self.total - done) / done
        self.progress(
            Status(
                attack=self.attack,
                share=min(1.0, done / self.total) if self.total else 0.0,
                seconds_left=left if self.total else None,
                right=self.right,
                seen=self.seen,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Jobs on one problem; what is finished lies in the journal."""

    problem: Problem
    jobs: tuple[Job, ...]
    clean: Bool[Tensor, " examples"]
    tried: Bool[Tensor, " examples"]
    """Wrong examples that are attacked too, to see whether an attack repairs them."""
    streams: Streams
    chunk: int
    journal: Journal
    meter: Meter
    parted: bool = False
    """Whether a chunk is attacked in parts."""
    pool: ThreadPoolExecutor | None = None
    """Threads that parts may go to; what a part gives does not depend on them."""

    def run(self, *, share: int = 0, shares: int = 1) -> list[int]:
        """Finishes every chunk of this share that is not finished; returns the finished chunks.

        Chunk c belongs to share c modulo `shares`. Where time runs out, what is finished stays.
        """
        mine = [(c, rows) for c, rows in self.chunks() if c % shares == share]
        self.meter.total = sum(self._planned(rows) for _, rows in mine)
        self.meter.show(now=True)
        finished = []
        try:
            for chunk, rows in mine:
                robust = self.clean[rows]
                for number, job in enumerate(self.jobs):
                    robust = robust & self._job(chunk, rows, number, job)
                self.meter.right += int(robust.sum())
                self.meter.seen += int(self.clean[rows].sum())
                finished.append(chunk)
        except OutOfTime:
            pass
        self.meter.show(now=True)
        return finished

    def chunks(self) -> Sequence[tuple[int, Int[Tensor, " rows"]]]:
        """The examples of the data, in numbered pieces."""
        return list(chunks(len(self.clean), self.chunk))

    def units(self, chunk: int, number: int) -> Iterator[tuple[Attack, Outcome]]:
        """The finished stages of job `number` on a chunk, in order."""
        for stage, attack in enumerate(self.jobs[number].stages):
            outcome = self.journal.load(Unit(chunk, number, stage))
            if outcome is not None:
                yield attack, outcome

    def verify(self, chunk: int) -> None:
        """Classifies the stored points of a chunk again, and measures how far they went.

        Raises:
            CorruptFile: If one does not fool the model, or left the threat set.
        """
        for number, job in enumerate(self.jobs):
            for attack, outcome in self.units(chunk, number):
                if not len(outcome.fooled):
                    continue
                where = f"The stored points of '{attack.label}' (chunk {chunk} of '{job.label}')"
                batch = self.problem.batch(outcome.fooled)
                points = outcome.points.to(batch.x.device)
                if not self._allowed(points, batch.x, batch.mask):
                    raise CorruptFile(f"{where} must lie in the threat set; some do not.")
                if self.problem.judge(points, batch.y).right.any():
                    raise CorruptFile(
                        f"{where} must fool the model; some do not. They are of another model, or "
                        "were made on another machine or with another number of threads. Evaluate "
                        "without --resume."
                    )

    def _allowed(self, points: Tensor, x: Tensor, mask: Tensor | None) -> bool:
        threat = self.problem.threat
        if float(threat.distance(points, x).max()) > threat.eps * (1 + 1e-6):
            return False
        low, high = x.clamp(max=threat.bounds[0]), x.clamp(min=threat.bounds[1])
        if not bool(((points >= low) & (points <= high)).all()):
            return False
        moved = (points != x).flatten(1)
        free = [r.free for r in threat.regions(x, mask=mask)]
        held = [moved.any(1) & False if f is None else (moved & ~f.flatten(1)).any(1) for f in free]
        return not bool(torch.stack(held).all(0).any())  # each within one of the regions

    def _planned(self, rows: Tensor) -> float:
        given = int(self.clean[rows].sum()) + int(self.tried[rows].sum())
        return sum(self.meter.of(stage, given) for job in self.jobs for stage in job.stages)

    def _job(self, chunk: int, rows: Tensor, number: int, job: Job) -> Tensor:
        """Runs the stages of a job on a chunk; who of `rows` is still right."""
        left = rows[self.clean[rows]]
        tried = rows[self.tried[rows]]
        planned = [self.meter.of(stage, len(left) + len(tried)) for stage in job.stages]
        self.meter.attack = job.label
        for stage, attack in enumerate(job.stages):
            unit = Unit(chunk, number, stage)
            outcome = self.journal.load(unit)
            spent = self.meter.of(attack, len(left) + len(tried))
            self.meter.total -= planned[stage] - spent  # the fooled are skipped
            if outcome is not None:
                self.meter.total -= spent
            elif len(left) + len(tried):
                if job.suite is not None:
                    self.meter.attack = f"{job.label}: {attack.label}"
                outcome = self._attack(unit, job, attack, left, tried)
                self.journal.store(unit, outcome)
                self.meter.done += spent
            self.meter.show()
            if outcome is not None:
                left = left[~torch.isin(left, outcome.fooled)]
            tried = tried[:0]  # the first stage says what is to be said of them
        return torch.isin(rows, left)

    def _attack(self, unit: Unit, job: Job, attack: Attack, left: Tensor, tried: Tensor) -> Outcome:
        """One stage on the examples `left`, then on those of `tried`."""
        rows = torch.cat((left, tried))
        batch, ledger = self.problem.batch(rows), self.problem.access.ledger
        before = (ledger.calls, ledger.forwards, ledger.backwards)
        found = self._search(unit, job, attack, rows, batch)
        judged = self.problem.judge(found.points, batch.y)
        claimed = (~judged.right[: len(left)]).nonzero().flatten()
        fooled = self._confirmed(found.points, batch.y, claimed)
        right = judged.right.clone()
        right[: len(left)] = True
        right[fooled] = False
        return Outcome(
            rows=rows,
            right=right,
            part=found.part.cpu(),
            nan=judged.nan,
            fooled=left[fooled],
            points=found.points[fooled.to(found.points.device)].cpu(),
            passes=(
                ledger.calls - before[0],
                ledger.forwards - before[1],
                ledger.backwards - before[2],
            ),
        )

    def _search(
        self, unit: Unit, job: Job, attack: Attack, rows: Tensor, batch: Batch
    ) -> Candidates:
        """Runs the attack, part by part, in as many threads as there are; the ledger has it all."""
        planned, cost = self.meter.of(attack, len(rows)), self.meter.cost
        search = Search(
            problem=self.problem,
            attack=attack,
            rows=rows,
            batch=batch,
            parts=parts(len(rows)) if self.parted else [slice(0, len(rows))],
            noise=lambda some: self._noise(job, attack, some),
            unit=unit,
            journal=self.journal,
        )

        def show(forwards: int, backwards: int) -> None:
            spent = forwards * cost.forward + backwards * cost.backward
            self.meter.show(min(spent, planned))

        return search.run(self.pool, show)

    def _confirmed(self, points: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
        """Those of `claimed` that are wrong when classified together, as `verify` will do it.

        Rounding may differ between batches; a point that is wrong in one only fools nobody.
        """
        while len(claimed):
            at = claimed.to(points.device)
            right = self.problem.judge(points[at], y[at]).right
            if not right.any():
                break
            claimed = claimed[~right]
        return claimed

    def _noise(self, job: Job, attack: Attack, rows: Tensor) -> Noise:
        noise = self.streams.examples("evaluate", job.label, indices=rows)
        return noise if job.suite is None else noise.fork("stage", attack.label)
