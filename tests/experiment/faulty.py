"""What a process of a parallel run does in tests: its work, with a fault in one of them."""

import os
import signal

from robustssm.experiment import parallel
from robustssm.training import loop

THERE = parallel._there


def failing(fabric, *arguments):
    """Process 1 fails at its second batch."""
    _at_second_batch(fabric, _fail)
    THERE(fabric, *arguments)


def killed(fabric, *arguments):
    """Process 1 is killed at its second batch."""
    _at_second_batch(fabric, _kill)
    THERE(fabric, *arguments)


def all_killed(fabric, *arguments):
    """Both are killed at the fifth batch, as if the machine had gone down."""
    _at_batch(5, _kill)
    THERE(fabric, *arguments)


def _at_second_batch(fabric, fault):
    if fabric.global_rank == 1:
        _at_batch(2, fault)


def _at_batch(number, fault):
    train, calls = loop._train, []

    def train_or_fail(*arguments, **keywords):
        calls.append(None)
        if len(calls) == number:
            fault()
        return train(*arguments, **keywords)

    loop._train = train_or_fail


def _fail():
    raise RuntimeError("a fault of process 1 alone")


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)
