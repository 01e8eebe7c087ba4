"""A process that does runs, one after another: `python -m robustssm.sweep.worker`.

It reads a line of JSON per run from its standard input and answers with lines on its standard
output. When the input ends, its driver has ended it or is dead: the run is stopped, and can be
resumed.
"""

import _thread
import contextlib
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from robustssm.sweep.job import LOG, Job, Progress, Setup

_GRACE = 8.0
"""Seconds that a run has to end by itself once it is told to."""


class _Worker:
    def __init__(self, answers: int):
        """Answers go to this file descriptor."""
        self._answers = answers
        self._tasks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._busy = self._over = False

    def listen(self) -> None:
        for line in sys.stdin:
            self._tasks.put(json.loads(line))
        self._over = True
        self._tasks.put(None)
        if self._busy:
            _thread.interrupt_main()
            threading.Event().wait(_GRACE)
            os._exit(1)  # it hangs in something that hears no interrupt

    def work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._busy = True
            if self._over:
                return
            self._say({"progress": vars(Progress())})
            job, setup = Job.from_dict(task["job"]), Setup.from_dict(task["setup"])
            _write_to(job)
            from robustssm.sweep.work import perform  # here, as it loads torch

            reply = perform(job, setup, lambda progress: self._say({"progress": progress}))
            self._busy = False
            _drop_empty_log(job)
            self._say({"reply": reply})

    def _say(self, message: Mapping[str, Any]) -> None:
        data = (json.dumps(message) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._answers, data) :]
        except OSError:
            pass  # the driver is dead, which `listen` hears too


def _write_to(job: Job) -> None:
    """Sends what the run prints, and its last words if it crashes, to a file beside it."""
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        file = os.open(job.directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return  # the run meets the same, and says so
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _drop_empty_log(job: Job) -> None:
    with contextlib.suppress(OSError):
        if (job.directory / LOG).stat().st_size == 0:
            (job.directory / LOG).unlink()


def main() -> None:
    """Works until the input ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    answers = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    worker = _Worker(answers)
    try:
        threading.Thread(target=worker.listen, daemon=True).start()
        worker.work()
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    main()
