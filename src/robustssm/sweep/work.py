"""One run of a sweep, as a worker does it: the function that `robustssm run` calls, and no more."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from robustssm.evaluation.work import Status
from robustssm.experiment.display import Display
from robustssm.sweep.job import LOG, Job, Progress, Setup

Send = Callable[[Mapping[str, Any]], None]
_SECONDS_BETWEEN = 1.0
_FOR_GOOD = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError)
"""Errors of the operating system that another attempt would meet again."""


def perform(job: Job, setup: Setup, send: Send) -> dict[str, Any]:
    """Does a run, or goes on with it.

    Args:
        job: The run.
        setup: How.
        send: Is given a `Progress` as a dictionary, once a second at most.

    Returns:
        {"result": evaluation.json}, or {"error": a sentence, "transient": whether another attempt
        may end better}; then the traceback is in worker.log of the run's directory.
    """
    sys.path += [path for path in setup.paths if path not in sys.path]
    sys.argv = list(setup.command) or sys.argv
    try:
        return {"result": _run(job, setup, send)}
    except Exception as error:  # a run that fails must not end the worker, nor the sweep
        _keep_traceback(job)
        last = traceback.format_exception_only(error)[-1].strip()
        expected = isinstance(error, ValueError | OSError | ArithmeticError | RuntimeError)
        text = str(error) if expected and str(error) else last
        return {"error": text, "transient": may_pass(error)}


def may_pass(error: Exception) -> bool:
    """Whether what failed may work another time: memory, disks, directories in use."""
    from torch import OutOfMemoryError

    from robustssm.core.errors import RunInUse

    if isinstance(error, _FOR_GOOD):
        return False
    return isinstance(error, MemoryError | OSError | OutOfMemoryError | RunInUse)


class Reporter(Display):
    """Sends how far a run has come, once a second at most."""

    def __init__(self, send: Send):
        """Sends by `send`."""
        self._send = send
        self._sent = self._began = time.monotonic()
        self._at_first = self._epochs = self._batches = 0

    def training(self, *, epochs: int, batches: int, epoch: int, batch: int) -> None:
        """Training begins."""
        self._epochs, self._batches = epochs, batches
        self._at_first, self._began = epoch * batches + batch, time.monotonic()
        self._tell(Progress(phase="training", epoch=min(epoch + 1, epochs), epochs=epochs))

    def step(self, *, epoch: int, batch: int, values: Mapping[str, float], speed: float) -> None:
        """A batch is done."""
        if time.monotonic() - self._sent < _SECONDS_BETWEEN:
            return
        done, whole = (epoch - 1) * self._batches + batch, self._epochs * self._batches
        spent = time.monotonic() - self._began
        left = spent * (whole - done) / max(1, done - self._at_first)
        self._tell(
            Progress(
                phase="training",
                epoch=epoch,
                epochs=self._epochs,
                share=done / whole,
                seconds_left=left,
            )
        )

    def evaluating(self, *, checkpoint: str, examples: int) -> None:
        """An evaluation begins."""
        self._tell(Progress(phase="evaluating"))

    def attacked(self, status: Status) -> None:
        """An evaluation has come so far."""
        if time.monotonic() - self._sent >= _SECONDS_BETWEEN:
            self._tell(
                Progress(
                    phase="evaluating",
                    share=status.share,
                    seconds_left=status.seconds_left,
                    attack=status.attack,
                )
            )

    def _tell(self, progress: Progress) -> None:
        self._sent = time.monotonic()
        self._send(asdict(progress))


def _run(job: Job, setup: Setup, send: Send) -> dict[str, Any]:
    from robustssm.core.config import override
    from robustssm.experiment import run
    from robustssm.recipes import recipe

    return run(
        override(recipe(job.recipe), job.overrides),
        job.directory,
        name=job.recipe,
        overrides=job.overrides,
        resume=True,
        data_dir=setup.data_dir,
        device=setup.device,
        threads=setup.threads,
        display=Reporter(send),
    )


def _keep_traceback(job: Job) -> None:
    try:
        with (job.directory / LOG).open("a") as file:
            file.write(traceback.format_exc())
    except OSError:
        pass  # the directory is what failed; the error itself says so
