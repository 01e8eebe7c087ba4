"""Finds the results of poisoning studies and reads them; what cannot be read is listed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from robustssm.core.errors import CorruptFile
from robustssm.records import read_json
from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
from robustssm.records.poisoning import PoisonResult
from robustssm.reporting import names
from robustssm.reporting.runs import LeftOut, Study, StudyResult

FOLDER = "poison"
"""Every JSON file in a folder of this name is a result, or damaged."""
FILES = ("theory", "beyond", "network", "dynamics", "sweep", "defence", "brewing", "audit")
"""How the names of results begin; such a file is a result, or damaged, wherever it lies."""
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError)


def find(paths: Sequence[Path]) -> tuple[tuple[Study, ...], tuple[LeftOut, ...]]:
    """Reads every result of a poisoning study that is given or lies at or below what is given.

    Args:
        paths: Files of results, or directories that hold them at any depth.

    Returns:
        What could be read, and what should have been; both sorted by name.
    """
    found: dict[Path, Study | LeftOut] = {}
    taken: set[str] = set()
    for root, path, certain in _files(paths):
        if path.resolve() in found:
            continue
        name = _free(path.relative_to(root).as_posix(), taken)
        read_as = read(path, name=name, certain=certain)
        if read_as is not None:
            taken.add(name)
            found[path.resolve()] = read_as
    ordered = sorted(found.values(), key=lambda each: each.name)
    return (
        tuple(each for each in ordered if isinstance(each, Study)),
        tuple(each for each in ordered if isinstance(each, LeftOut)),
    )


def read(path: Path, *, name: str, certain: bool) -> Study | LeftOut | None:
    """Reads one file.

    Args:
        path: The file.
        name: What the report calls it.
        certain: Whether it must be a result; if not, another file gives None.
    """
    try:
        data = names.printable(read_json(path))
        maker = _maker(data)
        if maker is None:
            if not certain:
                return None
            raise CorruptFile("it is no result of a poisoning study.")
        result = maker(data)
        _check(result, type(result), "")
        return Study(name=name, result=result)
    except _DAMAGE as error:
        if not certain:
            return None
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{kind}{error}".replace(f"{path.parent}/", "")
        return LeftOut(name=name, state="damaged", reason=str(names.printable(reason)))


_MAKERS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any]], StudyResult]], ...] = (
    (frozenset({"study", "runs", "sweep"}), PoisonResult.from_dict),
    (frozenset({"arms", "brewed", "differences"}), BrewingResult.from_dict),
    (frozenset({"detectors", "defences", "verdicts"}), DefenceResult.from_dict),
    (frozenset({"source", "sequences", "findings"}), AuditResult.from_dict),
)
"""Keys that tell a kind of result from every other, and what reads it."""


def _maker(data: Any) -> Callable[[Mapping[str, Any]], StudyResult] | None:
    if not isinstance(data, Mapping):
        return None
    return next((maker for keys, maker in _MAKERS if keys <= set(data)), None)


def _check(value: Any, kind: Any, where: str) -> None:
    """Refuses a value that is not of its annotated kind, before a table trips over it."""
    if kind in _WORDS:
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed):
            raise CorruptFile(f"{where} must be {_WORDS[kind]}; got {str(value)[:40]!r}.")
    elif isinstance(kind, UnionType):  # something, or None
        if value is not None:
            _check(value, get_args(kind)[0], where)
    elif get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise CorruptFile(f"{where} must be a list; got {str(value)[:40]!r}.")
        for item in value:
            _check(item, get_args(kind)[0], where)
    elif get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise CorruptFile(f"{where} must be an object; got {str(value)[:40]!r}.")
        for key, item in value.items():
            _check(item, get_args(kind)[1], f"{where}.{key}")
    elif is_dataclass(kind):
        for each in fields(kind):
            _check(getattr(value, each.name), each.type, f"{where}.{each.name}".lstrip("."))


_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "text",
}


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, Path, bool]]:
    """What names are relative to, the file, and whether it must be a result."""
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


def _free(name: str, taken: set[str]) -> str:
    name = str(names.printable(name))
    options = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 3))]
    return next(option for option in options if option not in taken)
