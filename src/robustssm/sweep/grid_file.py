"""A grid in a TOML file: recipes, changes of them all, and settings to vary.

title = "How wide must S4 be?"
recipes = ["digits.s4_pgd", "digits.s4_ads_*_pgd", "mine:quick"]
[overrides]
epochs = 10
[vary]
"model.d_model" = [16, 32]
objective.threat.eps = [0.05, 0.1]
"""

import fnmatch
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustssm.core.errors import unknown, violation
from robustssm.recipes import names
from robustssm.recipes.grids import Entry, Grid

_KEYS = ("title", "recipes", "overrides", "vary")


def read_grid(path: Path) -> Grid:
    """Reads a grid; each recipe is taken once for every combination of the settings that vary.

    Args:
        path: The TOML file; the grid is called after it.

    Raises:
        ValueError: If the file is not a grid; lists everything that is wrong with it.
        FileNotFoundError: If it is not there.
    """
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(violation(f"{path}", "be a TOML file", f"this: {error}")) from None
    problems = [unknown(f"part of a grid ({path})", key, _KEYS) for key in data if key not in _KEYS]
    recipes = data.get("recipes")
    if not isinstance(recipes, list) or not recipes or not all(isinstance(r, str) for r in recipes):
        example = 'For example: recipes = ["digits.s4_*"]'
        problems.append(
            violation(f"`recipes` of {path}", "be a list of names", repr(recipes), example)
        )
        recipes = []
    tables = {key: data.get(key, {}) for key in ("overrides", "vary")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            problems.append(violation(f"`{key}` of {path}", "be a table", repr(table)))
            tables[key] = {}
    vary = dict(_flat(tables["vary"]))
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            problems.append(
                violation(f"`vary.{key}` of {path}", "be a list of values", repr(values))
            )
    chosen: list[str] = []
    for pattern in recipes:
        try:
            chosen += matching(pattern)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    fixed = {key: _text(value) for key, value in _flat(tables["overrides"])}
    entries = tuple(
        Entry(recipe=recipe, overrides=fixed | changes, label=label)
        for recipe in dict.fromkeys(chosen)
        for label, changes in _combinations(vary)
    )
    return Grid(name=path.stem, title=str(data.get("title", path.stem)), entries=entries)


def is_pattern(text: str) -> bool:
    """Whether a name has wildcards."""
    return any(sign in text for sign in "*?[")


def matching(pattern: str) -> list[str]:
    """Names of the shipped recipes that fit a pattern; a plain name stands for itself.

    Raises:
        ValueError: If none fits.
    """
    if not is_pattern(pattern):
        return [pattern]
    found = fnmatch.filter(names(), pattern)
    if not found:
        raise ValueError(f"No recipe fits '{pattern}'. `robustssm list TIER` shows their names.")
    return found


def _flat(table: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values: `a.b = 1` without quotes is a table in TOML; one with a name is a
    part.
    """
    for key, value in table.items():
        path = f"{at}.{key}" if at else key
        if isinstance(value, dict) and "name" not in value:
            yield from _flat(value, path)
        else:
            yield path, value


def _combinations(vary: Mapping[str, list[Any]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Label and overrides of each combination; one empty combination if nothing varies."""
    shorts = [key.rsplit(".", 1)[-1] for key in vary]
    heads = [s if shorts.count(s) == 1 else k for s, k in zip(shorts, vary, strict=True)]
    words = [_words(values) for values in vary.values()]
    for at in itertools.product(*(range(len(values)) for values in vary.values())):
        parts = [f"{h}={w[i]}" for h, w, i in zip(heads, words, at, strict=True)]
        changes = {k: _text(v[i]) for (k, v), i in zip(vary.items(), at, strict=True)}
        yield "+".join(parts), changes


def _words(values: list[Any]) -> list[str]:
    """Short names of values, for directories; their numbers where they have none of their own."""
    plain = [_text(value) for value in values if not isinstance(value, list | dict)]
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word) for word in plain]
    told_apart = len({*words}) == len(values)
    return words if told_apart and max(map(len, words)) <= 24 else [*map(str, range(len(values)))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
