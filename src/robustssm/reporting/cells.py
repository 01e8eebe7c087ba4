"""Which runs are one cell of a table, and what the cell says: accuracies with their uncertainty."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

from robustssm.records import Flags, wilson
from robustssm.reporting import names, verdicts
from robustssm.reporting.base import MISSING, Cell
from robustssm.reporting.pairs import mcnemar, paired
from robustssm.reporting.runs import Checkpoint, Run

CLEAN, WORST = "clean", "worst case"
MINUS = "\N{MINUS SIGN}"
_IDLE = ("seed", "evaluation_batch_size", "log_every", "keep_every")
"""Settings in which repetitions may differ: the seed, and what has no effect on a number."""
_OWN = ("model", "objective", *_IDLE)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone, one per seed, and the cell they make."""

    section: tuple[str, str]
    """Data set and threat: only runs under the same threat stand side by side."""
    structure: str
    """The row: structure, with the settings that tell variants apart."""
    method: str
    runs: tuple[Run, ...]
    repeats: tuple[str, ...] = ()
    """Names of runs that repeat a seed and are not counted."""


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Sorts runs into cells, in the order of the table.

    Runs with the same structure and method but other settings are never averaged: they get rows of
    their own, named by the settings in which they differ.
    """
    places: dict[tuple[tuple[str, str], str, str], list[Run]] = {}
    for run in runs:
        section = (run.dataset, names.threat(run.threat))
        places.setdefault((section, run.structure, run.method), []).append(run)
    made = []
    for (section, structure, method), members in places.items():
        for variant, same in _variants(members):
            counted, repeats = _one_per_seed(same)
            row = f"{structure} ({variant})" if variant else structure
            made.append(
                Group(section=section, structure=row, method=method, runs=counted, repeats=repeats)
            )
    return tuple(
        sorted(
            made,
            key=lambda g: (
                names.rank(names.DATASETS, g.section[0]),
                g.section[1],
                names.rank(names.STRUCTURES, g.structure),
                names.rank(names.METHODS, g.method),
            ),
        )
    )


def further_differences(members: Sequence[Group]) -> tuple[str, ...]:
    """Dotted settings, outside model, objective and seed, that are not the same in all cells.

    Args:
        members: Cells that stand beside each other.
    """
    everything = [
        {key: value for key, value in _stated(run.experiment).items() if key not in _OWN}
        for group in members
        for run in group.runs
    ]
    return _telling([dict(_leaves(settings)) for settings in everything])


def flags(checkpoint: Checkpoint, key: str) -> Flags | None:
    """The flags behind a number, or None if it was not measured (no attack: no worst case).

    Args:
        checkpoint: An evaluated checkpoint.
        key: `CLEAN`, `WORST` or the label of an attack.
    """
    result = checkpoint.result
    if key == WORST:
        return result.robust if result.survived else None
    return result.clean if key == CLEAN else result.survived.get(key)


def accuracy(
    runs: Sequence[Run], checkpoint: str, key: str, *, level: float, marks: Mapping[str, str]
) -> Cell:
    """Accuracy in percent: with its Wilson interval for one run, spread over seeds for several.

    Args:
        runs: Runs that differ in their seed alone.
        checkpoint: "best" or "last".
        key: `CLEAN`, `WORST` or the label of an attack.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
    """
    rows = [
        f
        for r in runs
        if checkpoint in r.checkpoints
        if (f := flags(r.checkpoints[checkpoint], key))
    ]
    return share(rows, level=level, marks=marks) if rows else MISSING


def share(rows: Sequence[Flags], *, level: float, marks: Mapping[str, str]) -> Cell:
    """Percentage of examples that hold: with its interval for one run, spread for several.

    Args:
        rows: One or more rows of flags.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
    """
    values = [100 * sum(row) / len(row) for row in rows]
    if len(rows) == 1:
        low, high = wilson(sum(rows[0]), len(rows[0]), level=level)
        details = (f"[{100 * low:.1f}, {100 * high:.1f}]",)
    else:
        details = (f"± {stdev(values):.1f}", f"{len(values)} seeds")
    return _cell(f"{mean(values):.1f}", details, marks)


def difference(
    runs: Sequence[Run],
    key: str,
    *,
    level: float,
    marks: Mapping[str, str],
    tested: bool = False,
) -> Cell:
    """Accuracy of "best" minus that of "last", in percentage points, on the same examples.

    Args:
        runs: Runs that differ in their seed alone.
        key: `CLEAN`, `WORST` or the label of an attack.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
        tested: Whether a single pair gets McNemar's p.
    """
    pairs = list(_pairs(runs, key))
    if not pairs:
        return MISSING
    cell = points(pairs, level=level, marks=marks, tested=tested)
    same = len(pairs) == 1 and _same_epoch(runs)
    return dataclasses.replace(cell, details=("same epoch",)) if same else cell


def points(
    pairs: Sequence[tuple[Flags, Flags]],
    *,
    level: float,
    marks: Mapping[str, str],
    tested: bool = False,
) -> Cell:
    """First minus second in percentage points: a paired interval, or the spread over several runs.

    Args:
        pairs: One or more pairs of flags, each pair of the same examples.
        level: Confidence of the interval, in (0, 1).
        marks: Label to severity of the notes on this cell.
        tested: Whether a single pair gets McNemar's p.
    """
    values = [100 * (sum(b) - sum(a)) / len(b) for b, a in pairs]
    if len(pairs) > 1:
        details = (f"± {stdev(values):.1f}", f"{len(values)} seeds")
    else:
        low, high = paired(*pairs[0], level=level)
        details = (f"[{signed(100 * low)}, {signed(100 * high)}]",)
        details += (probability(mcnemar(*pairs[0])),) if tested else ()
    return _cell(signed(mean(values)), details, marks)


def probability(p: float) -> str:
    """Three decimals, "p = 0.031", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(number: float) -> str:
    """One decimal with its sign; nothing is "-0.0"."""
    text = f"{number:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _pairs(runs: Sequence[Run], key: str) -> Iterator[tuple[Flags, Flags]]:
    for run in runs:
        if {"best", "last"} <= set(run.checkpoints):
            both = run.checkpoints["best"], run.checkpoints["last"]
            best, last = (flags(checkpoint, key) for checkpoint in both)
            if best and last and verdicts.same_examples(both[0].result, both[1].result):
                yield best, last


def _same_epoch(runs: Sequence[Run]) -> bool:
    epochs = [run.checkpoints[name].epoch for run in runs for name in ("best", "last")]
    return None not in epochs and len(set(epochs)) == 1


def _cell(value: str, details: tuple[str, ...], marks: Mapping[str, str]) -> Cell:
    return Cell(value=value, details=details, marks=tuple(marks), state=state(marks))


def state(marks: Mapping[str, str]) -> Literal["value", "suspicious", "invalid"]:
    """How far a number with these notes, label to severity, can be believed."""
    if "invalid" in marks.values():
        return "invalid"
    return "suspicious" if "warning" in marks.values() else "value"


def _variants(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """Sets of runs with equal settings (seed aside), each with the settings that tell it apart."""
    equal: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in _stated(run.experiment).items() if k not in _IDLE}
        equal.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    leaves = {key: dict(_leaves(json.loads(key))) for key in equal}
    telling = _telling(list(leaves.values()))
    taken: set[str] = set()
    for key in sorted(equal):
        words = [f"{path} = {leaves[key].get(path, 'none')}" for path in telling[:3]]
        words += [f"and {len(telling) - 3} more"] if len(telling) > 3 else []
        text = ", ".join(words)
        while text in taken:
            text += " \N{PRIME}"
        taken.add(text)
        yield text, equal[key]


def _stated(value: Any) -> Any:
    """Settings without those that are null: an older record lacks what later ones leave empty."""
    if isinstance(value, dict):
        return {key: _stated(item) for key, item in value.items() if item is not None}
    return [_stated(item) for item in value] if isinstance(value, list) else value


def _telling(settings: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    paths = sorted({path for each in settings for path in each})
    return tuple(p for p in paths if len({each.get(p, "none") for each in settings}) > 1)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{path}.{at}")
    else:
        yield path, json.dumps(value).strip('"')


def _one_per_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """One run per seed, the one started last; a repeated seed says nothing about other seeds."""
    kept: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: (run.provenance.started, run.name)):
        kept[run.seed] = run
    counted = tuple(kept[seed] for seed in sorted(kept))
    return counted, tuple(sorted(run.name for run in runs if run not in counted))
