"""Which runs have equal settings, seed aside, and which settings tell the others apart."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustssm.reporting.runs import Run

_LABEL = re.compile(r"\+([\w=-]+)")
IDLE = ("seed", "evaluation_batch_size", "log_every", "keep_every", "micro_batches")
"""Settings in which repetitions may differ: the seed, and what has no effect on a number."""


def variants(runs: Sequence[Run]) -> Iterator[tuple[str, list[Run]]]:
    """Sets of runs with equal settings (seed aside), each with the words that tell it apart: the
    labels of a grid where they do, else the settings.
    """
    equal: dict[str, list[Run]] = {}
    for run in runs:
        own = {k: v for k, v in stated(run.experiment).items() if k not in IDLE}
        equal.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    labels = {key: label(members) for key, members in equal.items()}
    if len(set(labels.values())) == len(labels):  # at most one without, which needs no words
        yield from ((labels[key], equal[key]) for key in sorted(equal, key=lambda k: labels[k]))
        return
    known = {key: dict(leaves(json.loads(key))) for key in equal}
    paths = telling(list(known.values()))
    taken: set[str] = set()
    for key in sorted(equal):
        words = [f"{path} = {known[key].get(path, 'none')}" for path in paths[:3]]
        words += [f"and {len(paths) - 3} more"] if len(paths) > 3 else []
        text = ", ".join(words)
        while text in taken:
            text += " \N{PRIME}"
        taken.add(text)
        yield text, equal[key]


def label(runs: Sequence[Run]) -> str:
    """What a grid calls a change: what follows the plus in CELL+LABEL; empty if runs disagree.

    Args:
        runs: Runs with equal settings.
    """
    found = {match[1] if (match := _LABEL.search(run.name)) else "" for run in runs}
    return found.pop().replace("_", " ") if len(found) == 1 else ""


def stated(value: Any) -> Any:
    """Settings without those that are null: an older record lacks what later ones leave empty."""
    if isinstance(value, dict):
        return {key: stated(item) for key, item in value.items() if item is not None}
    return [stated(item) for item in value] if isinstance(value, list) else value


def telling(settings: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Names of settings that are not the same in all."""
    paths = sorted({path for each in settings for path in each})
    return tuple(p for p in paths if len({each.get(p, "none") for each in settings}) > 1)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of nested settings with their values as text."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for at, item in enumerate(value):
            yield from leaves(item, f"{path}.{at}")
    else:
        yield path, json.dumps(value).strip('"')


def one_per_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """One run per seed, the one started last; a repeated seed says nothing about other seeds."""
    kept: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: (run.provenance.started, run.name)):
        kept[run.seed] = run
    counted = tuple(kept[seed] for seed in sorted(kept))
    return counted, tuple(sorted(run.name for run in runs if run not in counted))
