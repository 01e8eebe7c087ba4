"""What carries out the runs of a sweep, seen from the driver."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from robustssm.sweep.job import Job, Progress


@dataclass(frozen=True, kw_only=True)
class Event:
    """News of a run: progress, or its end."""

    job: Job
    progress: Progress | None = None
    """None at the end."""
    result: dict[str, Any] | None = None
    """The contents of evaluation.json; None if it failed."""
    error: str = ""
    transient: bool = False
    """Whether another attempt may end better."""

    @classmethod
    def of_reply(cls, job: Job, reply: Mapping[str, Any]) -> "Event":
        """The end of a run, as `work.perform` tells it."""
        return cls(
            job=job,
            result=reply.get("result"),
            error=reply.get("error", ""),
            transient=reply.get("transient", False),
        )


@runtime_checkable
class Backend(Protocol):
    """Does runs elsewhere, a number of them at a time."""

    @property
    def slots(self) -> int:
        """How many runs may be under way."""
        ...

    def submit(self, job: Job) -> None:
        """Begins a run; there must be a free slot."""
        ...

    def wait(self, seconds: float) -> Sequence[Event]:
        """News, as soon as there is some; nothing after so many seconds."""
        ...

    def close(self) -> None:
        """Ends everything under way, so that it can be resumed, and lets go of all processes."""
        ...
