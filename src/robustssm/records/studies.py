"""Which files are results of the poisoning laboratory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
from robustssm.records.poisoning import PoisonResult

StudyResult = PoisonResult | BrewingResult | DefenceResult | AuditResult

FOLDER = "poison"
"""Every JSON file in a folder of this name is a result, or damaged."""
FILES = ("theory", "beyond", "network", "dynamics", "sweep", "defence", "brewing", "audit")
"""How the names of results begin; such a file is a result, or damaged, wherever it lies."""

_MAKERS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any]], StudyResult]], ...] = (
    (frozenset({"study", "runs", "sweep"}), PoisonResult.from_dict),
    (frozenset({"arms", "brewed", "differences"}), BrewingResult.from_dict),
    (frozenset({"detectors", "defences", "verdicts"}), DefenceResult.from_dict),
    (frozenset({"source", "sequences", "findings"}), AuditResult.from_dict),
)
"""Keys that tell a kind of result from every other, and what reads it."""


def maker(data: Any) -> Callable[[Mapping[str, Any]], StudyResult] | None:
    """What reads the content of a file; None if it is no result.

    Args:
        data: As JSON has it.
    """
    if not isinstance(data, Mapping):
        return None
    return next((read for keys, read in _MAKERS if keys <= set(data)), None)


def files(paths: Sequence[Path]) -> Iterator[tuple[Path, Path, bool]]:
    """Files that may be results: what their names are relative to, the file, if it must be one.

    Args:
        paths: Files of results, or directories that hold them at any depth.
    """
    for path in paths:
        if path.is_file():
            yield path.parent, path, True
        elif path.is_dir():
            base = path if path.name != FOLDER else path.parent
            for folder in _folders(path, set()):
                inside = folder.resolve().name == FOLDER
                for file in sorted(folder.glob("*.json")):
                    yield base, file, inside or file.stem.startswith(FILES)


def _folders(path: Path, seen: set[Path]) -> Iterator[Path]:
    """Folders that may hold results: not those of a run, except its own folder of that name."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    if (path / "recipe.json").exists():
        if (path / FOLDER).is_dir():
            yield path / FOLDER
        return
    yield path
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from _folders(child, seen)
