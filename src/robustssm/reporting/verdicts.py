"""Whether an evaluation can be believed, in words: the same in reports and on the command line."""

from typing import Literal

from robustssm.records import EvaluationResult
from robustssm.reporting import names

Verdict = Literal["reliable", "suspicious", "unreliable"]
ORDER: tuple[Verdict, ...] = ("unreliable", "suspicious", "reliable")
"""Worst first."""


def verdict(result: EvaluationResult) -> Verdict:
    """The record's verdict: "reliable", "suspicious" or "unreliable"."""
    return next(word for word in ORDER if word == result.verdict)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The gravest of at least one verdict."""
    return min(verdicts, key=ORDER.index)


def checks(result: EvaluationResult) -> str:
    """Which checks were run."""
    return "all checks were run" if result.diagnosed else "cheap checks; --diagnose runs all"


def meaning(result: EvaluationResult) -> str:
    """What the verdict says of the numbers, and which checks it rests on.

    Warnings are counted, not listed: whoever calls says them beside this.
    """
    found = list(dict.fromkeys(warning.name for warning in result.warnings))
    text = {
        "reliable": "no check found anything",
        "suspicious": f"look at {', '.join(found)} before using a number",
        "unreliable": f"the numbers must not be believed: {', '.join(found)}",
    }[verdict(result)]
    return f"{text} ({checks(result)})"


def partial(result: EvaluationResult) -> str:
    """What a time limit left undone, or nothing."""
    if result.planned is None or result.planned <= result.n:
        return ""
    return f"partial: {result.n} of {result.planned} examples, the time limit ended it"


def same_examples(first: EvaluationResult, second: EvaluationResult) -> bool:
    """Whether two evaluations on the same data can be paired, example by example.

    Which examples a time limit left finished is not on record, so partial ones cannot.
    """
    hashes = (first.data_hash, second.data_hash)
    different = None not in hashes and hashes[0] != hashes[1]
    return first.n == second.n and not (partial(first) or partial(second) or different)


def deviations(result: EvaluationResult) -> dict[str, tuple[str, ...]]:
    """Display name of a suite to how it differs from the published one, where it does.

    A number that bears the name of a suite without a record of its stages is said to be so.
    """
    said = {}
    for label in result.survived:
        suite = result.suites.get(label)
        if suite is not None and suite.deviations:
            said[names.attack(label)] = suite.deviations
        elif suite is None and label in names.SUITES:
            said[names.attack(label)] = ("its stages are not on record",)
    return said
