"""What a sweep shows: a live table in a terminal, lines where there is none."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from robustssm.sweep import Job, Outcome, Progress, Watcher

_FRAME = 7
"""Lines of the table besides its rows, and of the prompt."""
_STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "failed": "bold red"}


@dataclass
class _Row:
    job: Job
    state: str = "waiting"
    began: float = 0.0
    progress: Progress | None = None
    outcome: Outcome | None = None
    remark: str = ""
    ended: float = 0.0


class Board(Watcher):
    """Keeps what is known of every run, and draws it as a table."""

    def __init__(self, console: Console, jobs: Sequence[Job], *, title: str, slots: int):
        """Begins with all runs waiting."""
        self._console, self._title, self._slots = console, title, max(1, slots)
        self._rows = {job.directory: _Row(job) for job in jobs}
        self._began = time.monotonic()
        self.whole = False
        """Whether to draw every row, however small the screen."""

    def started(self, job: Job, attempt: int) -> None:
        """A run begins."""
        row = self._rows[job.directory]
        row.state, row.began, row.progress = "running", time.monotonic(), None

    def progressed(self, job: Job, progress: Progress) -> None:
        """A run has come so far."""
        self._rows[job.directory].progress = progress

    def interrupted(self, job: Job, reason: str) -> None:
        """A run waits for another attempt."""
        row = self._rows[job.directory]
        row.state, row.remark = "waiting", f"again, as {reason}"

    def ended(self, outcome: Outcome) -> None:
        """A run is finished, or has failed for good."""
        row = self._rows[outcome.job.directory]
        row.state = "done" if outcome.result is not None else "failed"
        row.outcome, row.ended = outcome, time.monotonic()

    def __rich__(self) -> Table:
        """The table as it is now."""
        table = Table(title=self._title, title_justify="left", caption_justify="left")
        table.add_column("run", overflow="ellipsis", no_wrap=True, ratio=3)
        table.add_column("seed", justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=not self.whole, ratio=5)
        table.add_column("time", justify="right", no_wrap=True)
        for row in self._shown():
            style = _STYLES[row.state]
            state = Text(row.state, style=style)
            spent = Text(self._spent(row))
            seed = Text(str(row.job.seed))
            table.add_row(Text(row.job.name), seed, state, Text(_words(row)), spent)
        table.caption = self.counts()
        return table

    def counts(self) -> str:
        """How many runs are in which state, the time, and how much is left."""
        states = [row.state for row in self._rows.values()]
        parts = [f"{states.count(s)} {s}" for s in _STYLES if s in states]
        passed = f"{span(time.monotonic() - self._began)} passed"
        left = self.seconds_left()
        return ", ".join([*parts, passed] + ([] if left is None else [f"about {span(left)} left"]))

    def seconds_left(self) -> float | None:
        """Estimated from runs that are done, of the same cell where there are any."""
        known: dict[str, list[float]] = defaultdict(list)
        for row in self._rows.values():
            if row.outcome is not None and row.outcome.attempts and row.outcome.result is not None:
                known[row.job.name].append(row.outcome.seconds)
        everything = [seconds for found in known.values() for seconds in found]
        open_ = [row for row in self._rows.values() if row.state in ("waiting", "running")]
        if not everything or not open_:
            return None
        total, longest = 0.0, 0.0
        for row in open_:
            found = known.get(row.job.name, everything)
            left = sum(found) / len(found)
            if row.state == "running":
                own = row.progress.seconds_left if row.progress is not None else None
                left = max(left - (time.monotonic() - row.began), own or 0.0)
                longest = max(longest, left)
            total += left
        return max(longest, total / self._slots)

    def _shown(self) -> list[_Row]:
        """All rows, or what is running, has failed, and was done last where they are too many."""
        rows, room = list(self._rows.values()), max(3, self._console.height - _FRAME)
        if self.whole or len(rows) <= room:
            return rows
        by_state = defaultdict(list)
        for row in rows:
            by_state[row.state].append(row)
        done = sorted(by_state["done"], key=lambda row: row.ended)
        waiting = sorted(by_state["waiting"], key=lambda row: not row.remark)
        chosen = [*by_state["running"], *by_state["failed"], *reversed(done), *waiting][:room]
        return [row for row in rows if any(row is each for each in chosen)]

    def _spent(self, row: _Row) -> str:
        if row.state == "running":
            return span(time.monotonic() - row.began)
        if row.outcome is None:
            return ""
        return span(row.outcome.seconds) if row.outcome.attempts else "before"


class Lines(Watcher):
    """Prints a line where a run begins, and where it ends."""

    def __init__(self, console: Console, jobs: Sequence[Job]):
        """Prints on `console`."""
        self._console, self._total, self._ended = console, len(jobs), 0
        self._width = max((len(job.title) for job in jobs), default=0)
        self._began = time.monotonic()

    def started(self, job: Job, attempt: int) -> None:
        """A run begins."""
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._print(job, f"begins{again}")

    def interrupted(self, job: Job, reason: str) -> None:
        """A run waits for another attempt."""
        self._print(job, f"waits for another attempt, as {reason}")

    def ended(self, outcome: Outcome) -> None:
        """A run has ended; those that were there already are not worth a line."""
        self._ended += 1
        if outcome.attempts:
            self._print(outcome.job, outcome.summary)

    def _print(self, job: Job, what: str) -> None:
        digits = len(str(self._total))
        self._console.print(
            f"[{time.monotonic() - self._began:5.0f} s] {self._ended:{digits}}/{self._total}  "
            f"{job.title:<{self._width}}  {what}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def watching(
    console: Console, jobs: Sequence[Job], *, title: str, slots: int, quiet: bool
) -> Iterator[Watcher]:
    """What shows a sweep on `console`: a table that lives, or lines, or nothing.

    Args:
        console: Where.
        jobs: All runs.
        title: Over the table.
        slots: How many run at a time.
        quiet: Whether to show nothing.
    """
    if quiet:
        yield Watcher()
    elif console.is_terminal:
        board = Board(console, jobs, title=title, slots=slots)
        try:
            with Live(board, console=console, refresh_per_second=1, transient=True):
                yield board
        finally:
            board.whole = True
            console.print(board)
    else:
        console.print(title, highlight=False, soft_wrap=True)
        yield Lines(console, jobs)


def summary(outcomes: Sequence[Outcome], log: str, seconds: float) -> Iterator[str]:
    """Lines for the end: counts, then every failure with its reason.

    Args:
        outcomes: Of all runs.
        log: Name of the file with a run's traceback.
        seconds: The sweep took.
    """
    failed = [each for each in outcomes if each.result is None]
    before = sum(each.attempts == 0 for each in outcomes)
    earlier = f" ({before} of them before)" if before else ""
    good = len(outcomes) - len(failed)
    total = f"{len(outcomes)} run{'s'[: len(outcomes) != 1]}"
    yield f"{good} of {total} finished{earlier}, {len(failed)} failed; {span(seconds)}"
    for each in failed:
        where = each.job.directory / log
        see = f" See {where}." if Path(where).exists() else ""
        yield f"failed: {each.job.title}: {each.error}{see}"


def span(seconds: float) -> str:
    """A time as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _words(row: _Row) -> str:
    if row.outcome is not None:
        return row.outcome.summary.removeprefix("failed: ")
    progress = row.progress
    if row.state != "running" or progress is None:
        return row.remark
    left = progress.seconds_left
    to_go = f", {span(left)} left" if left is not None else ""
    if progress.phase == "training":
        return f"epoch {progress.epoch}/{progress.epochs}{to_go}"
    if progress.phase == "evaluating":
        attack = f"evaluating {progress.attack}".rstrip()
        return f"{attack} {100 * progress.share:.0f} %{to_go}"
    return progress.phase
