"""One process at a time in the directory of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustssm.core.errors import RunInUse

_SECONDS_FOR_A_GLANCE = 0.3
"""A lock is waited for so long, as who asks if it is free holds it for an instant."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a directory for this process; the system lets go of it when the process dies.

    Args:
        directory: Made if it is not there.

    Raises:
        RunInUse: If another process holds it.
    """
    from filelock import FileLock, Timeout

    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_file(directory), timeout=_SECONDS_FOR_A_GLANCE)
    try:
        lock.acquire()
    except Timeout:
        raise RunInUse(
            f"{directory} must be used by one process at a time; another one is running there. "
            "Wait for it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def in_use(directory: Path) -> bool:
    """Whether a process holds a directory.

    The lock, if it is free, is held for an instant, which a run that starts just then waits for.
    A directory that may not be written, so by no run of ours, is not in use.
    """
    if not _file(directory).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(_file(directory), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _file(directory: Path) -> Path:
    return directory / ".lock"
