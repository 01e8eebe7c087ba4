"""A candidate in a process of its own, whose allocator keeps memory instead of returning it.

A benchmark gives its peer this setting too (`core.allocator`), so that nobody can say that the
allocator was what we measured.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE, Popen

import torch

from robustssm.core.allocator import keep_freed_memory


class Tuned:
    """Runs `python -m MODULE ARGUMENTS --serve` tuned, one piece of work for each call of `run`."""

    def __init__(self, module: str, arguments: Sequence[str]):
        """Starts the process, which answers once it is ready.

        Raises:
            RuntimeError: If it does not come up, or its allocator cannot be tuned.
        """
        root = Path(__file__).resolve().parents[1]
        self._process = Popen(
            [sys.executable, "-m", module, *arguments, "--serve"],
            stdin=PIPE,
            stdout=PIPE,
            text=True,
            cwd=root,
        )
        self._await("ready")

    def run(self) -> None:
        """One piece of work there; returns when it is done."""
        self._tell("run")
        self._await("done")

    def threads(self, count: int) -> None:
        """Sets the number of threads there."""
        self._tell(f"threads {count}")
        self._await("done")

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._tell("end")
            self._process.wait(timeout=30)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _await(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # peers may print what they like
            if line.strip() == word:
                return
        raise RuntimeError(
            f"The process with the tuned allocator must answer '{word}'; it ended. "
            "Run the benchmark without it (--no-tuned)."
        )


def serve(work: Callable[[], object]) -> None:
    """The other end of `Tuned`: works when told to, with the allocator tuned.

    Raises:
        ValueError: If the allocator cannot be tuned.
    """
    keep_freed_memory()
    work()
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, value = line.strip().partition(" ")
        if word == "end":
            return
        if word == "threads":
            torch.set_num_threads(int(value))
        else:
            work()
        print("done", flush=True)
