"""Errors that repair: which invariant, what came, what to do."""

import difflib
from collections.abc import Iterable


class Inapplicable(Exception):
    """A theory or method that does not cover the model it was asked about."""


class CorruptFile(ValueError):
    """A file that is not what it says it is; nothing was overwritten."""


class NonFiniteLoss(FloatingPointError):
    """Training met a NaN or infinite loss or gradient, and stopped."""


class OutOfMemory(MemoryError):
    """Training does not fit into memory, even in the smallest pieces that it allows."""


class RunInUse(RuntimeError):
    """Another process holds the run directory."""


class OutOfTime(Exception):
    """The time that an evaluation was given is over; what is finished is kept."""


def violation(subject: str, must: str, got: object, advice: str = "") -> str:
    """Builds the three-part message of a broken invariant.

    Args:
        subject: What is constrained, as the user wrote it: "`PGD(steps=...)`".
        must: The invariant: "be a positive integer".
        got: The offending value.
        advice: What to do about it, a full sentence.
    """
    message = f"{subject} must {must}; got {got}."
    return f"{message} {advice}" if advice else message


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Says that `name` is not known, and which known name is nearest.

    Args:
        kind: What was asked for: "attack", "setting of `PGD`".
        name: The name that was asked for.
        known: All valid names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        hint = f"Did you mean '{near[0]}'?"
    elif names:
        hint = f"Known: {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}."
    else:
        hint = "None are known."
    return f"No {kind} is called '{name}'. {hint}"
