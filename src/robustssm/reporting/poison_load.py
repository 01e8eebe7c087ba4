"""Finds the results of poisoning studies and reads them; what cannot be read is listed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from robustssm.core.errors import CorruptFile
from robustssm.records import read_json, studies
from robustssm.reporting import names
from robustssm.reporting.runs import LeftOut, Study

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
    for root, path, certain in studies.files(paths):
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
        maker = studies.maker(data)
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


def _free(name: str, taken: set[str]) -> str:
    name = str(names.printable(name))
    options = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 3))]
    return next(option for option in options if option not in taken)
