"""What is said about the numbers of runs: verdicts, reasons, and what a table must add below."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustssm.records import EvaluationResult, Flagged
from robustssm.reporting import verdicts
from robustssm.reporting.base import Judgement, Judgements, Note
from robustssm.reporting.cells import leaves
from robustssm.reporting.comparable import apart, recorded
from robustssm.reporting.runs import CHOSEN_ON_TEST, Run

Marks = Mapping[tuple[str, str], Mapping[str, str]]
"""(name of a run, checkpoint) to {label of a note: its severity, "" if it questions no attack}."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A note on a run, and the checkpoints whose numbers it concerns."""

    run: str
    checkpoints: tuple[str, ...]
    note: Note
    sign: Flagged


def of(runs: Sequence[Run]) -> list[Noted]:
    """One note per run and warning, numbered in the order of the runs."""
    noted: list[Noted] = []
    for run in runs:
        concerned: dict[Flagged, list[str]] = {}
        for checkpoint, sign in run.warnings:
            concerned.setdefault(sign, []).append(checkpoint)
        for sign, checkpoints in concerned.items():
            which = " and ".join(checkpoints)
            place = f"{run.dataset}, {run.structure}, {run.method}, {which} of {run.name}"
            note = Note(
                label=f"w{len(noted) + 1}",
                text=f"{place}: {sign.message} ({sign.name})",
                severity="invalid" if sign.severity == "invalid" else "warning",
            )
            noted.append(Noted(run=run.name, checkpoints=tuple(checkpoints), note=note, sign=sign))
    return noted


def marks(noted: Sequence[Noted]) -> Marks:
    """The labels that numbers of a checkpoint bear."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for each in noted:
        severity = "" if each.sign == CHOSEN_ON_TEST else each.note.severity
        for checkpoint in each.checkpoints:
            found.setdefault((each.run, checkpoint), {})[each.note.label] = severity
    return found


def summary(runs: Sequence[Run]) -> Judgements:
    """How many runs can be believed, worst first, by name where not; and which are partial."""
    items = []
    for word in verdicts.ORDER:
        having = [run for run in runs if run.verdict == word]
        if having:
            text = f"{len(having)} of {_count(len(runs), 'run')}{_about(word, having)}"
            items.append(Judgement(word=word, text=text))
    partial = [text for run in runs if (text := _partial(run))]
    if partial:
        items.append(Judgement(word="partial", text="; ".join(_few(partial))))
    return Judgements(items=tuple(items))


def of_run(run: Run) -> Judgements:
    """The verdict on each checkpoint, once where they agree, and whether it is partial."""
    said: dict[tuple[verdicts.Verdict, str], list[str]] = {}
    for name, checkpoint in run.checkpoints.items():
        result = checkpoint.result
        key = (verdicts.verdict(result), verdicts.meaning(result))
        said.setdefault(key, []).append(name)
    items = [
        Judgement(word=word, text=f"{' and '.join(names)}: {text}")
        for (word, text), names in said.items()
    ]
    partial = {p for c in run.checkpoints.values() if (p := verdicts.partial(c.result))}
    items += [Judgement(word="partial", text=_without_word(text)) for text in sorted(partial)]
    return Judgements(items=tuple(items))


def below(runs: Sequence[Run], labels: Sequence[str]) -> tuple[str, ...]:
    """What must stand under a table with numbers of these attacks: how suites differ from the
    published ones, and which attacks share a name but not all settings.

    Args:
        runs: Whose numbers are in the table.
        labels: Attacks that are in it, by themselves or in a worst case.
    """
    concerned: dict[tuple[str, str], list[Run]] = {}
    having: dict[str, list[Run]] = {}
    for run in runs:
        for name, found in _deviations(run, labels).items():
            having.setdefault(name, []).append(run)
            for text in found:
                concerned.setdefault((name, text), []).append(run)
    said = []
    for (name, text), members in concerned.items():
        which = "" if members == _showing(runs, name, labels) else f" ({_places(members)})"
        said.append(f"{name}: {text}{which}.")
    return (*said, *_otherwise(runs, labels))


def _otherwise(runs: Sequence[Run], labels: Sequence[str]) -> Iterator[str]:
    """Attacks of one label, on the same data under the same threat, with settings that differ."""
    found: dict[tuple[str, str, str], dict[str, tuple[Mapping[str, Any], list[Run]]]] = {}
    for label in labels:
        for run in runs:
            kinds = found.setdefault((label, run.dataset, verdicts.names.threat(run.threat)), {})
            for settings in _settings(run, label):
                key = json.dumps(leaves(settings), sort_keys=True)
                members = kinds.setdefault(key, (settings, []))[1]
                members += [run] if run not in members else []
    for (label, dataset, _), kinds in found.items():
        ranked = sorted(kinds.values(), key=lambda kind: -len(kind[1]))
        for settings, members in ranked[1:]:
            said = "; ".join(f"{path} {b}, not {a}" for path, a, b in apart(ranked[0][0], settings))
            name = verdicts.names.attack(label)
            yield f"{name} on {dataset} was another for {_places(members)}: {said}."


def _settings(run: Run, label: str) -> Iterator[Mapping[str, Any]]:
    for checkpoint in run.checkpoints.values():
        if label in checkpoint.result.survived and label not in checkpoint.result.suites:
            settings = recorded(run, checkpoint.result).get(label)
            if settings:
                yield settings


def _showing(runs: Sequence[Run], name: str, labels: Sequence[str]) -> list[Run]:
    chosen = [label for label in labels if verdicts.names.attack(label) == name]
    return [
        run
        for run in runs
        if any(label in c.result.survived for c in run.checkpoints.values() for label in chosen)
    ]


def _deviations(run: Run, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    shown = {verdicts.names.attack(label) for label in labels}
    for checkpoint in run.checkpoints.values():
        for name, texts in verdicts.deviations(checkpoint.result).items():
            if name in shown:
                found.setdefault(name, {}).update(dict.fromkeys(texts))
    return {name: tuple(texts) for name, texts in found.items()}


def _about(word: verdicts.Verdict, runs: Sequence[Run]) -> str:
    if word == "reliable":
        results = [c.result for run in runs for c in run.checkpoints.values()]
        return f": no check found anything ({_checks(results)})"
    names = "; ".join(_few([f"{run.name} ({_signs(run)})" for run in runs]))
    meant = {
        "unreliable": "Numbers struck out must not be believed.",
        "suspicious": "Read the notes on them before using a number.",
    }[word]
    return f": {names}. {meant}"


def _checks(results: Sequence[EvaluationResult]) -> str:
    full = sum(result.diagnosed for result in results)
    if full in (0, len(results)):
        return verdicts.checks(results[0])
    return f"all checks on {full} of {len(results)} checkpoints, cheap ones on the others"


def _signs(run: Run) -> str:
    found = {w.name: None for c in run.checkpoints.values() for w in c.result.warnings}
    return ", ".join(found)


def _partial(run: Run) -> str:
    texts = {verdicts.partial(c.result): None for c in run.checkpoints.values()}
    said = [_without_word(text) for text in texts if text]
    return f"{run.name}: {' and '.join(said)}" if said else ""


def _without_word(text: str) -> str:
    return text.removeprefix("partial: ")


def _places(runs: Sequence[Run]) -> str:
    return "; ".join(_few(list(dict.fromkeys(f"{r.structure}, {r.method}" for r in runs))))


def _few(texts: list[str], limit: int = 6) -> Iterator[str]:
    yield from texts[:limit]
    if len(texts) > limit:
        yield f"and {len(texts) - limit} more"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
