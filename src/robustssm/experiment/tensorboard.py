"""TensorBoard: metrics.jsonl told again in event files, while a run writes it or long after.

There is one mechanism, copying, so that both always say the same. Needs the extra `tracking`.
"""

import importlib
import importlib.util
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustssm.core.errors import CorruptFile, violation
from robustssm.experiment.display import Display, Several
from robustssm.experiment.rundir import RunDirectory
from robustssm.records import StepRecord

PLACE = "tensorboard"
"""Directory of the event files within that of the run."""
_SECONDS_BETWEEN_COPIES = 1.0


class Mirror:
    """A metrics.jsonl, and the event files that say the same.

    Every value becomes a scalar "step/NAME" or "epoch/NAME" over optimiser steps. Times are those
    of copying, as metrics.jsonl holds none.
    """

    def __init__(self, metrics: Path, directory: Path):
        """Names both; nothing is read or written yet.

        Args:
            metrics: The file to copy.
            directory: Of the event files; those that it holds are replaced at the first `update`.

        Raises:
            ValueError: If the extra `tracking` is not installed.
        """
        if importlib.util.find_spec("tensorboardX") is None:
            raise ValueError(
                violation(
                    "A TensorBoard writer",
                    "have the package tensorboardX",
                    "none",
                    "Install it: pip install 'robustssm[tracking]'",
                )
            )
        self.metrics = metrics
        self.directory = directory
        self._writer: Any = None
        self._file: int | None = None
        self._read = 0

    def update(self) -> None:
        """Copies the whole lines that are new.

        A file that was replaced, as resuming does to drop the steps it will repeat, is copied anew
        into new event files.

        Raises:
            CorruptFile: If a line is no record.
        """
        if not self.metrics.exists():
            return
        found = self.metrics.stat()
        writer = self._writer
        if writer is None or found.st_ino != self._file or found.st_size < self._read:
            writer = self._begin(found.st_ino)
        with self.metrics.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._copy(line, writer)
        self._read += len(whole)
        writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self, file: int) -> Any:
        # Not SummaryWriter, whose queue and thread leave open when something is in the file.
        from tensorboardX.event_file_writer import EventsWriter

        self.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("events.out.tfevents.*"):
            old.unlink()
        unique = f".{time.time_ns()}"  # the name holds whole seconds only
        self._writer = EventsWriter(str(self.directory / "events"), unique)
        # A TensorBoard that has read the old files forgets all that they said from step 0 on.
        log = _messages("event").SessionLog
        self._writer.write_event(_event(0, session_log=log(status=log.START)))
        self._file, self._read = file, 0
        return self._writer

    def _copy(self, line: bytes, writer: Any) -> None:
        try:
            record = StepRecord.from_line(line.decode())
            summary = _messages("summary").Summary
            values = [
                summary.Value(tag=f"{record.kind}/{name}", simple_value=float(value))
                for name, value in record.values.items()
            ]
            event = _event(record.step, summary=summary(value=values))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(
                f"{self.metrics} must hold one record per line; a line is damaged ({error}): "
                f"{line[:80]!r}. Remove the line to copy the others."
            ) from None
        writer.write_event(event)


def export(run: Path, directory: Path) -> None:
    """Writes the event files of a run that is there, finished or not.

    Args:
        run: Directory of the run; it is only read, unless `directory` lies in it.
        directory: Of the event files.

    Raises:
        ValueError: If the extra `tracking` is not installed.
        CorruptFile: If metrics.jsonl is damaged.
    """
    mirror = Mirror(RunDirectory(run).metrics, directory)
    try:
        mirror.update()
    finally:
        mirror.close()


@contextmanager
def followed(run: Path, display: Display) -> Iterator[Display]:
    """A display that shows what `display` does, and keeps RUN/tensorboard up to date.

    Args:
        run: Directory of the run, which need not exist.
        display: What else shows progress.

    Raises:
        ValueError: If the extra `tracking` is not installed.
    """
    follower = _Follower(Mirror(RunDirectory(run).metrics, run / PLACE))
    try:
        yield Several(display, follower)
    finally:
        follower.finish()


class _Follower(Display):
    """Copies when there may be something new; nothing before it is told that the run is ours."""

    def __init__(self, mirror: Mirror):
        self._mirror = mirror
        self._ours = False
        self._copied = 0.0

    def training(self, *, epochs: int, batches: int, epoch: int, batch: int) -> None:
        self._ours = True
        self._mirror.update()

    def step(self, *, epoch: int, batch: int, values: Mapping[str, float], speed: float) -> None:
        if time.monotonic() - self._copied >= _SECONDS_BETWEEN_COPIES:
            self._mirror.update()
            self._copied = time.monotonic()

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        self._ours = True
        self._mirror.update()

    def finish(self) -> None:
        """Copies the rest."""
        try:
            if self._ours:
                self._mirror.update()
        finally:
            self._mirror.close()


def _event(step: int, **content: Any) -> Any:
    return _messages("event").Event(wall_time=time.time(), step=step, **content)


def _messages(name: str) -> Any:
    """TensorBoard's messages, which exist at run time only."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")
