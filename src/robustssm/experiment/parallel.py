"""One run in several processes, one per device: started here, or by torchrun or SLURM."""

import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from robustssm.core.errors import Inapplicable, NonFiniteLoss, OutOfMemory, RunInUse
from robustssm.core.placement import Placement, Precision, in_processes, started_outside
from robustssm.experiment.display import Display
from robustssm.experiment.job import Job, carry_out
from robustssm.experiment.rundir import RunDirectory
from robustssm.records import read_json

TOLD = (ValueError, OSError, Inapplicable, RunInUse, NonFiniteLoss, OutOfMemory)
"""Errors whose message is for the user: raised by the caller as they were by a process."""


def in_parallel(
    job: Job, *, device: str, devices: int, nodes: int, display: Display
) -> dict[str, Any]:
    """Trains in `devices` processes on each of `nodes` nodes, and evaluates in the first.

    Args:
        job: What to do.
        device: Kind of device.
        devices: Processes per node.
        nodes: How many nodes; on each of them this is called.
        display: Shows progress.

    Returns:
        The contents of evaluation.json; empty where the first process is none of this caller's.

    Raises:
        As `run`; and ChildProcessError if a process fails otherwise, after which none is left.
    """
    where = {"device": device, "processes": devices, "nodes": nodes}
    precision = job.experiment.precision
    if started_outside():
        found: list[dict[str, Any]] = []
        in_processes(_here, job, devices, display, found, precision=precision, **where)
        return found[0]
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    failures: list[tuple[int, Any]] = []
    finished: list[int] = []

    def receive(kind: str, content: Any) -> None:
        if kind == "failed":
            failures.append(content)
        elif kind == "finished":
            finished.append(content)
        else:
            getattr(display, kind)(*content[0], **content[1])

    try:
        with _received(queue, receive), _none_left():
            in_processes(
                _there, job.to_plain(), precision, devices, queue, precision=precision, **where
            )
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise _failure(failures, error) from None
    return read_json(RunDirectory(job.directory).evaluation) if finished else {}


class Relay(Display):
    """Hands everything to the display of the process that began the run."""

    def __init__(self, queue: Any):
        """Sends through a queue.

        Args:
            queue: Its `put` must not wait for long.
        """
        for name in (n for n in vars(Display) if not n.startswith("_")):
            setattr(self, name, self._sender(queue, name))

    @staticmethod
    def _sender(queue: Any, name: str) -> Callable[..., None]:
        return lambda *given, **named: queue.put((name, (given, named)))


def _here(
    fabric: Any, job: Job, devices: int, display: Display, found: list[dict[str, Any]]
) -> None:
    """In a process that was started by somebody else: this one."""
    placement = Placement.among(fabric, job.experiment.precision)
    shown = Display() if placement.rank else display
    found.append(carry_out(job, placement, shown, on_this_host=devices))


def _there(
    fabric: Any, plain: dict[str, Any], precision: Precision, devices: int, queue: Any
) -> None:
    """In a process that was started for the run."""
    placement = Placement.among(fabric, precision)
    try:
        display = Display() if placement.rank else Relay(queue)
        record = carry_out(Job.from_plain(plain), placement, display, on_this_host=devices)
    except Exception as error:
        told = error if isinstance(error, TOLD) else "".join(traceback.format_exception(error))
        queue.put(("failed", (placement.rank, told)))
        raise
    if record:
        queue.put(("finished", placement.rank))


def _failure(failures: list[tuple[int, Any]], error: Exception) -> Exception:
    """The first thing that went wrong; what followed from it in other processes is not told."""
    known = [what for _, what in failures if isinstance(what, Exception)]
    if known:
        return known[0]
    if failures:
        rank, what = failures[0]
        reason = f"process {rank} failed, and so all were ended:\n{what.rstrip()}\n"
    else:
        reason = f"{error}. All were ended. "
    return ChildProcessError(
        f"All processes of a run must live to its end; {reason}If one was killed or a connection "
        "was lost, memory may have been short. Continue with --resume."
    )


@contextmanager
def _received(queue: Any, receive: Callable[[str, Any], None]) -> Iterator[None]:
    """Takes messages while the enclosed lines run, in a thread, and the last ones after them."""
    ended = threading.Event()

    def watch() -> None:
        over = False
        while not over:
            over = ended.wait(0.05)  # looked at before the queue, so that none is left behind
            while not queue.empty():
                receive(*queue.get())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=10)  # a process killed in the middle of a message would block it


@contextmanager
def _none_left() -> Iterator[None]:
    """Ends the processes that the enclosed lines started, should they be left early."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
