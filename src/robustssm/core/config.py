"""Settings: frozen dataclasses with names, ranges, JSON and dotted overrides. Imports no torch.

A setting is written once, as a field with a type and a range, and from that come its check, its
JSON, its command-line override and its error message:

    @register("pgd")
    @settings
    class PGD(Attack):
        steps: Annotated[int, Field(ge=1)] = 10
"""

import dataclasses
import functools
import importlib
import json
import pkgutil
import types
import typing
from abc import ABC
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import PurePath
from typing import Any, ClassVar, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses

from robustssm.core.errors import unknown

Class = TypeVar("Class", bound=type)
Value = TypeVar("Value")

PACKAGES: Mapping[str, str] = {
    "attack": "robustssm.attacks",
    "dataset": "robustssm.data",
    "layer": "robustssm.layers",
    "model": "robustssm.models",
    "tokens": "robustssm.models",
    "objective": "robustssm.training",
    "optimizer": "robustssm.training",
    "probe": "robustssm.diagnostics",
    "report": "robustssm.reporting",
}
"""Where the classes of each kind live; `lookup` imports these modules once."""

_registry: dict[str, dict[str, type["Named"]]] = {}


class Named(ABC):
    """A value that JSON and the command line can name, by `kind` and, once registered, `name`."""

    kind: ClassVar[str]
    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, defaults included, with the registered name first."""
        return to_dict(self)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[Value]) -> type[Value]:
    """Makes a class a frozen, keyword-only, validated dataclass whose errors say what to do.

    Raises:
        ValueError: On construction with an unknown field or a value outside its type or range.
    """
    made = pydantic.dataclasses.dataclass(
        frozen=True,
        kw_only=True,
        config=pydantic.ConfigDict(arbitrary_types_allowed=True, extra="forbid"),
    )(cls)
    validated = made.__init__

    @functools.wraps(validated)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            validated(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ValueError(_explain(cls, error)) from None

    made.__init__ = __init__
    return made  # pyright: ignore[reportReturnType]


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: files the class under its `kind` and `name`.

    Raises:
        ValueError: If another class already has that name.
    """

    def file(cls: Class) -> Class:
        known = _registry.setdefault(cls.kind, {})
        if name in known and _origin(known[name]) != _origin(cls):
            raise ValueError(
                f"Every {cls.kind} must have a name of its own; got '{name}' for both "
                f"{_origin(known[name])} and {_origin(cls)}. Rename one of them."
            )
        known[name] = cls
        cls.name = name
        return cls

    return file


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def lookup(kind: str, name: str) -> type[Named]:
    """The class registered as `name` of `kind`.

    Raises:
        ValueError: If there is none; the nearest known name is offered.
    """
    _import_all(kind)
    known = _registry.get(kind, {})
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    return known[name]


def names(kind: str) -> tuple[str, ...]:
    """All registered names of a kind, sorted.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in PACKAGES:
        raise ValueError(unknown("kind", kind, PACKAGES))
    _import_all(kind)
    return tuple(sorted(_registry.get(kind, {})))


@functools.cache
def _import_all(kind: str) -> None:
    if kind not in PACKAGES:
        raise ValueError(unknown("kind", kind, PACKAGES))
    package = importlib.import_module(PACKAGES[kind])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="robustssm"):
        entry.load()


def to_dict(value: Any) -> Any:
    """Turns settings into JSON-able values, defaults included: tuples to lists, paths to text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {"name": value.name} if isinstance(value, Named) else {}
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return named | fields
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def from_dict(annotation: Any, data: Any) -> Any:
    """The inverse of `to_dict`: rebuilds a value of type `annotation`.

    Args:
        annotation: A settings class, a `Named` base class (the dict's "name" chooses the registered
            class), or a field's annotation made of these, `tuple[..., ...]`, `| None` and plain
            types.
        data: What `to_dict` gave; a bare string stands for a registered class with its defaults.

    Raises:
        ValueError: If a name or field is unknown or a value out of range.
    """
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return from_dict(arguments[0], data)
    if origin in (typing.Union, types.UnionType):
        return _from_union(arguments, data)
    if origin is tuple and isinstance(data, list | tuple):
        return _tuple_from(arguments, data)
    if origin in (dict, Mapping) and isinstance(data, Mapping):
        return {key: from_dict(arguments[1], item) for key, item in data.items()}
    if isinstance(annotation, type) and isinstance(data, str | Mapping):
        if issubclass(annotation, Named):
            return _named_from(annotation, data)
        if dataclasses.is_dataclass(annotation) and isinstance(data, Mapping):
            return _fields_from(annotation, data)
    return data


def _tuple_from(items: tuple[Any, ...], data: Any) -> tuple[Any, ...]:
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(from_dict(items[0], item) for item in data)
    if len(items) != len(data):
        return tuple(data)  # the field's own check says how many there must be
    return tuple(from_dict(item, value) for item, value in zip(items, data, strict=True))


def _from_union(options: tuple[Any, ...], data: Any) -> Any:
    if isinstance(data, str) and any(_is_plain_text(option, data) for option in options):
        return data
    fitting = [option for option in options if _could_be(option, data)]
    # Nothing described: let the first say what is wrong with the name or the fields.
    chosen = [option for option in fitting if _describes(option, data)] or fitting
    return from_dict(chosen[0], data) if chosen else data


def _is_plain_text(option: Any, data: str) -> bool:
    return option is str or (
        typing.get_origin(option) is typing.Literal and data in typing.get_args(option)
    )


def _could_be(option: Any, data: Any) -> bool:
    """Whether `data` has the outward form of `option`: a list, a name, or named fields."""
    if isinstance(data, list | tuple):
        return typing.get_origin(option) is tuple
    if isinstance(data, str):
        return _is_settings(option) and issubclass(option, Named)
    return isinstance(data, Mapping) and (
        _is_settings(option) or typing.get_origin(option) in (dict, Mapping)
    )


def _describes(option: Any, data: Any) -> bool:
    """Whether `data` names a class that `option` admits or, if classless, holds fields of it."""
    if not _is_settings(option):
        return True
    if not issubclass(option, Named):
        return set(data) <= set(field_types(option))
    name = data if isinstance(data, str) else data.get("name")
    return name in names(option.kind) and issubclass(lookup(option.kind, name), option)


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, Named) or dataclasses.is_dataclass(annotation)
    )


def _named_from(base: type[Named], data: str | Mapping[str, Any]) -> Named:
    fields = {"name": data} if isinstance(data, str) else dict(data)
    if "name" not in fields:
        options = ", ".join(names(base.kind))
        raise ValueError(f"A {base.kind} must say its name, one of: {options}; got {fields}.")
    cls = lookup(base.kind, fields.pop("name"))
    if not issubclass(cls, base):
        raise ValueError(f"'{cls.name}' is a {cls.kind} but not a {base.__name__}.")
    return _fields_from(cls, fields)


def _fields_from(cls: type[Value], data: Mapping[str, Any]) -> Value:
    hints = field_types(cls)
    for key in data:
        if key not in hints:
            raise ValueError(unknown(f"setting of `{cls.__name__}`", key, hints))
    return cls(**{key: from_dict(hints[key], value) for key, value in data.items()})


def field_types(cls: type) -> dict[str, Any]:
    """Field name to annotation, ranges (`Annotated`) included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def override(value: Value, assignments: Mapping[str, str]) -> Value:
    """Applies dotted overrides, as `--set` of the command line does.

    Args:
        value: Any settings value.
        assignments: Dotted path to text: {"objective.attack.steps": "20", "attacks.0.steps": "5",
            "model.layer": "s5", "optimizer.rates.dynamics.lr": "1e-4"}. Text is read as JSON
            where it is JSON, as a bare word otherwise. They are made in this order, except that
            one which is only right after another waits for it.

    Returns:
        A new value of the same type.

    Raises:
        ValueError: If a key is unknown (the nearest is offered) or a value is out of range.
    """
    waiting = dict(assignments)
    while waiting:
        refused: dict[str, ValueError] = {}
        for path, text in waiting.items():
            try:
                value = _replace_at(type(value), value, path.split("."), text, path)
            except ValueError as error:  # it may need another assignment first
                refused[path] = error
        if len(refused) == len(waiting):
            raise next(iter(refused.values()))
        waiting = {path: waiting[path] for path in refused}
    return value


def _replace_at(annotation: Any, value: Any, path: list[str], text: str, whole: str) -> Any:
    """`value` with what lies at `path` below it read from `text`; an empty path is all of it."""
    if not path:
        return _read(annotation, text)
    head, rest = path[0], path[1:]
    if isinstance(value, tuple):
        at = _index(head, value, whole)
        item = _replace_at(_item_type(annotation, value, at), value[at], rest, text, whole)
        return (*value[:at], item, *value[at + 1 :])
    if isinstance(value, Mapping):
        item_type = _item_type(annotation, value, head)
        item = value[head] if head in value else _blank(item_type)
        return {**value, head: _replace_at(item_type, item, rest, text, whole)}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(
            f"`{whole}` must end where a plain value stands; got '.{head}' below {value!r}. "
            f"Drop '.{'.'.join(path)}', or set the value above it first."
        )
    hints = field_types(type(value))
    if head not in hints:
        raise ValueError(
            f"`{whole}`: {unknown(f'setting of `{type(value).__name__}`', head, hints)}"
        )
    new = _replace_at(hints[head], getattr(value, head), rest, text, whole)
    return dataclasses.replace(value, **{head: new})


def _index(head: str, value: tuple[Any, ...], whole: str) -> int:
    if head.isdecimal() and int(head) < len(value):
        return int(head)
    raise ValueError(
        f"`{whole}` must have an index from 0 to {len(value) - 1} where it has '{head}', as there "
        f"are {len(value)} items. Without an index the whole tuple is set, from a JSON list."
    )


def _item_type(annotation: Any, value: Any, at: int | str) -> Any:
    """Type of the items of a tuple or mapping, out of a union or range if need be."""
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _item_type(arguments[0], value, at)
    if origin in (typing.Union, types.UnionType):
        wanted = [o for o in arguments if isinstance(value, typing.get_origin(o) or ())]
        return _item_type(wanted[0], value, at)
    if not arguments:
        return Any
    if origin is not tuple:
        return arguments[1]
    return arguments[0] if arguments[1:] == (Ellipsis,) else arguments[int(at)]


def _blank(annotation: Any) -> Any:
    """What a mapping's missing item is before its first field is set."""
    plain = _is_settings(annotation) and not issubclass(annotation, Named)
    return annotation() if plain else None


def _read(annotation: Any, text: str) -> Any:
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = text
    if annotation is str and not isinstance(data, str):
        data = text  # a word that happens to be a number
    return from_dict(annotation, data)


def _explain(cls: type, error: pydantic.ValidationError) -> str:
    """Rewrites pydantic's report in the house's three parts, one line per field."""
    lines = []
    known = [f.name for f in dataclasses.fields(cls)]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(unknown(f"setting of `{cls.__name__}`", where, known))
            continue
        if item["type"] in ("missing", "missing_keyword_only_argument"):
            lines.append(f"`{cls.__name__}({where}=...)` must be given; it has no default.")
            continue
        if item["type"] == "value_error":  # raised by a __post_init__, which speaks for itself
            lines.append(str(item.get("ctx", {}).get("error", item["msg"])))
            continue
        subject = f"`{cls.__name__}({where}=...)`" if where else f"`{cls.__name__}`"
        must = item["msg"].removeprefix("Input should ").removeprefix("be ")
        lines.append(f"{subject} must be {must}; got {item['input']!r}.")
    return "\n".join(lines)
