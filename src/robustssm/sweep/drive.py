"""Carries out the runs of a sweep: order, attempts, and news for who watches."""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustssm.sweep.backend import Backend, Event
from robustssm.sweep.job import Job, Outcome, Watcher

_SECONDS_OF_WAITING = 5.0
"""Between looks at the backend while nothing happens."""


def drive(
    jobs: Sequence[Job],
    backend: Backend,
    *,
    finished: Mapping[Path, dict[str, Any]] | None = None,
    retries: int = 1,
    watcher: Watcher | None = None,
) -> Iterator[Outcome]:
    """Yields every run as it ends: first those that are finished already, then in time.

    A run that fails stops no other. If the failure may pass (its process was killed, memory was
    short, a disk failed), the run is gone on with after all others have been begun.

    Args:
        jobs: The runs, in the order in which they are begun.
        backend: Carries them out; the caller closes it.
        finished: Directory to result of those that need not be run.
        retries: How often a run is begun again after a failure that may pass.
        watcher: Is told what happens.
    """
    watcher = watcher or Watcher()
    finished = finished or {}
    waiting: deque[Job] = deque()
    for job in jobs:
        if job.directory in finished:
            outcome = Outcome(job=job, result=finished[job.directory])
            watcher.ended(outcome)
            yield outcome
        else:
            waiting.append(job)
    running: dict[Path, _Attempt] = {}
    earlier: dict[Path, _Attempt] = {}
    while waiting or running:
        while waiting and len(running) < backend.slots:
            job = waiting.popleft()
            before = earlier.get(job.directory, _Attempt())
            running[job.directory] = _Attempt(before.number + 1, before.spent)
            backend.submit(job)
        for event in backend.wait(_SECONDS_OF_WAITING):
            attempt = running.get(event.job.directory)
            if attempt is None:
                continue  # late news of an attempt that is over
            if event.progress is not None:
                if attempt.began is None:
                    attempt.began = time.monotonic()
                    watcher.started(event.job, attempt.number)
                watcher.progressed(event.job, event.progress)
                continue
            del running[event.job.directory]
            if event.result is None and event.transient and attempt.number <= retries:
                earlier[event.job.directory] = attempt.ended()
                waiting.append(event.job)
                watcher.interrupted(event.job, event.error)
                continue
            outcome = _outcome(event, attempt.ended())
            watcher.ended(outcome)
            yield outcome


@dataclasses.dataclass
class _Attempt:
    """One attempt at a run, and the seconds spent in earlier ones."""

    number: int = 0
    spent: float = 0.0
    began: float | None = None

    def ended(self) -> "_Attempt":
        now = time.monotonic()
        spent = self.spent + (0.0 if self.began is None else now - self.began)
        return _Attempt(self.number, spent)


def _outcome(event: Event, attempt: _Attempt) -> Outcome:
    again = f" ({attempt.number} attempts)" if event.error and attempt.number > 1 else ""
    return Outcome(
        job=event.job,
        result=event.result,
        error=event.error + again,
        seconds=attempt.spent,
        attempts=attempt.number,
    )
