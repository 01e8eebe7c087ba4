"""What processes do in tests/core/test_processes.py; here, as new processes import it by name."""

import atexit
import multiprocessing
import os
from pathlib import Path

import torch

THREADS_LEFT = 3
"""How a process exits that still has threads of gloo when its interpreter is about to end."""


def served():
    """Whether gloo has threads in this process; Linux only."""
    return any("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def _look():
    if multiprocessing.parent_process() is not None and served():
        os._exit(THREADS_LEFT)


atexit.register(_look)  # the first to be registered is the last to be called


def exchange(fabric, directory):
    """Sums and broadcasts as a run does; process r writes what it has to `directory`/r."""
    total = fabric.all_reduce(torch.tensor(1.0 + fabric.global_rank), reduce_op="sum")
    told = fabric.broadcast({"from": fabric.global_rank}, src=0)
    (directory / str(fabric.global_rank)).write_text(f"{total:g} {told} {served()}")
