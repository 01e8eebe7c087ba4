"""What must agree before two runs are compared: examples, threat, and the settings of attacks."""

from collections.abc import Mapping
from typing import Any

from robustssm.core.errors import unknown
from robustssm.records import EvaluationResult
from robustssm.reporting import cells, names, verdicts
from robustssm.reporting.runs import Run

Apart = tuple[tuple[str, str, str], ...]
"""Dotted setting, its value in A, its value in B; "none" where there is none."""


def apart(first: Mapping[str, Any], second: Mapping[str, Any], at: str = "") -> Apart:
    """Settings that differ.

    Args:
        first: Of A.
        second: Of B.
        at: What they are the settings of, to stand before every name.
    """
    one, two = cells.leaves(first), cells.leaves(second)
    before = f"{at}." if at else ""
    return tuple(
        (before + path, one.get(path, "none"), two.get(path, "none"))
        for path in dict.fromkeys((*one, *two))
        if one.get(path, "none") != two.get(path, "none")
    )


def refuse_others(first: Run, second: Run, one: EvaluationResult, two: EvaluationResult) -> None:
    """Refuses what is not about the same examples under the same threat.

    Args:
        first: A.
        second: B.
        one: The evaluation of A.
        two: The evaluation of B.

    Raises:
        ValueError: Names every setting that differs.
    """
    reasons = [
        f"{path}: {a} in A, {b} in B" for path, a, b in apart(one.threat, two.threat, "threat")
    ]
    if one.n != two.n:
        reasons.append(f"test examples: {one.n} in A, {two.n} in B")
    for which, result in (("A", one), ("B", two)):
        if text := verdicts.partial(result):
            reasons.append(f"{which} is {text}, and which ones is not on record")
    if first.examples != second.examples or not (reasons or verdicts.same_examples(one, two)):
        a, b = (run.dataset for run in (first, second))
        reasons.append(f"the test examples themselves: of {a} in A, of {b} in B, or other files")
    if reasons:
        raise ValueError(
            f"Runs must be evaluated on the same examples under the same threat to be compared; "
            f"{first.name} (A) and {second.name} (B) differ in\n  "
            + "\n  ".join(reasons)
            + "\nEvaluate one as the other: robustssm evaluate RUN --set threat.eps=... --n ..."
        )


def shared(
    first: Run, second: Run, one: EvaluationResult, two: EvaluationResult, attack: str | None
) -> tuple[list[str], list[str]]:
    """Labels of the attacks that are the same in both, and remarks on the others.

    Args:
        first: A.
        second: B.
        one: The evaluation of A.
        two: The evaluation of B.
        attack: The only label wanted; None for all.

    Raises:
        ValueError: If `attack` is not the same in both, or not there.
    """
    labels = [label for label in one.survived if label in two.survived]
    if attack is not None and attack not in labels:
        raise ValueError(unknown("attack of both runs", attack, labels))
    known = recorded(first, one), recorded(second, two)
    same, remarks = [], []
    for label in labels if attack is None else [attack]:
        told = [each.get(label) for each in known]
        other = apart(told[0], told[1], label) if told[0] and told[1] else ()
        if not other:
            same.append(label)
            continue
        said = "; ".join(f"{path}: {a} in A, {b} in B" for path, a, b in other)
        if attack is not None:
            raise ValueError(f"Attacks must be the same to be compared; they differ in {said}.")
        remarks.append(f"{names.attack(label)} is left out, as its settings differ: {said}.")
    for which, result in (("A", one), ("B", two)):
        own = [names.attack(k) for k in result.survived if k not in labels and attack is None]
        if own:
            remarks.append(f"Only in {which}: {', '.join(own)}.")
    return same, remarks


def recorded(run: Run, result: EvaluationResult) -> dict[str, Mapping[str, Any]]:
    """Label to what is on record of an attack: its settings, or what a suite says of its stages.

    Older records of evaluations hold no settings; there they are those of the recipe, in order.
    After an evaluation by other attacks, which labels that begin with another name give away,
    they are not on record, and nothing is said.

    Args:
        run: Whose recipe is asked.
        result: One of its evaluations.
    """
    found: dict[str, Mapping[str, Any]] = dict(result.settings)
    listed = [s if isinstance(s, Mapping) else {} for s in run.experiment.get("attacks", [])]
    if not found and len(listed) == len(result.survived):
        found = dict(zip(result.survived, listed, strict=True))
        if any(not _called(label, s) for label, s in found.items() if label not in result.suites):
            found = {}
    for label, suite in result.suites.items():
        found[label] = {"stages": list(suite.stages), "deviations": list(suite.deviations)}
    return found


def _called(label: str, settings: Mapping[str, Any]) -> bool:
    return str(settings.get("name", "")).startswith(label.partition("-")[0])
