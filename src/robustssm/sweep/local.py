"""Runs in processes of this machine; one that dies takes no other with it."""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from robustssm.core.allocator import with_huge_pages
from robustssm.sweep.backend import Event
from robustssm.sweep.job import Job, Progress, Setup

_GRACE = 12.0
"""Seconds that workers have to end; they use fewer by themselves."""


class Local:
    """Worker processes, started when there is work, kept while they succeed."""

    def __init__(self, setup: Setup, *, jobs: int, devices: Sequence[str] = ()):
        """Starts nothing yet.

        Args:
            setup: Of every run.
            jobs: Processes at a time.
            devices: Taken in turn by the processes; the setup's if empty.
        """
        self._setups = [dataclasses.replace(setup, device=d) for d in devices] or [setup]
        self._jobs = jobs
        self._workers: list[_Process | None] = [None] * jobs
        self._news: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()

    @property
    def slots(self) -> int:
        """The number of processes."""
        return self._jobs

    def submit(self, job: Job) -> None:
        """Gives the run to an idle process, or to a new one."""
        free = [i for i, worker in enumerate(self._workers) if worker is None or worker.job is None]
        chosen = next((i for i in free if self._workers[i] is not None), free[0])
        worker = self._workers[chosen]
        if worker is None:
            setup = self._setups[chosen % len(self._setups)]
            worker = self._workers[chosen] = _Process(setup, self._news)
        worker.begin(job)

    def wait(self, seconds: float) -> Sequence[Event]:
        """What the processes said, or that one has died."""
        events: list[Event] = []
        try:
            while True:
                worker, message = self._news.get(timeout=0 if events else seconds)
                events += self._heard(worker, message)
        except queue.Empty:
            return events

    def _heard(self, worker: "_Process", message: dict[str, Any] | None) -> list[Event]:
        job = worker.job
        if message is None:  # it ended
            worker.tell_to_end()
            self._forget(worker)
            return [] if job is None else [Event(job=job, error=worker.death(), transient=True)]
        if job is None:
            return []
        if "progress" in message:
            return [Event(job=job, progress=Progress(**message["progress"]))]
        worker.job = None
        if message["reply"].get("transient"):  # memory was short: the next gets a fresh process
            worker.tell_to_end()
            self._forget(worker)
        return [Event.of_reply(job, message["reply"])]

    def _forget(self, worker: "_Process") -> None:
        self._workers = [None if each is worker else each for each in self._workers]

    def close(self) -> None:
        """Tells all processes to end, and ends those that do not."""
        workers = [worker for worker in self._workers if worker is not None]
        try:
            for worker in workers:
                worker.tell_to_end()
            ends = time.monotonic() + _GRACE
            for worker in workers:
                worker.wait_until(ends)
        finally:  # a second Ctrl-C does not wait
            for worker in workers:
                worker.kill()


class _Process:
    """A worker: a pipe to it, and a thread that hears what comes back."""

    def __init__(
        self, setup: Setup, news: "queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]]"
    ):
        self.job: Job | None = None
        self._setup, self._news = setup, news
        threads = str(setup.threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "robustssm.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=with_huge_pages(os.environ)
            | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C is for the driver, which tells the workers
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, job: Job) -> None:
        self.job = job
        assert self._process.stdin is not None
        task = {"job": job.to_dict(), "setup": self._setup.to_dict()}
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died while idle; `_listen` tells, and the run is begun again

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed within the line
                    self._news.put((self, json.loads(line)))
        self._process.wait()
        self._news.put((self, None))

    def death(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"its process ended with status {code}; worker.log of the run may say why"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        why = {
            "SIGKILL": ", as the system does when memory runs out",
            "SIGSEGV": "; worker.log of the run shows where",
        }
        return f"its process was killed by {name}{why.get(name, '')}"

    def tell_to_end(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it is dead

    def wait_until(self, ends: float) -> None:
        try:
            self._process.wait(timeout=max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
