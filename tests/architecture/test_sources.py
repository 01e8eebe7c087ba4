"""Every method says where it comes from, by a key that docs/references.bib explains."""

import re
import sys
from pathlib import Path

import pytest

from robustssm.core.config import lookup, names

ROOT = Path(__file__).resolve().parents[2]
BIBLIOGRAPHY = ROOT / "docs" / "references.bib"
KEY = re.compile(r"\b[a-z]+(?:19|20)\d\d[a-z]+\b")
ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},$", re.MULTILINE)

KINDS = ("layer", "attack", "objective", "dataset")
"""Kinds whose classes are somebody's method or data; the others are ours, and may cite."""


def entries() -> dict[str, dict[str, str]]:
    text = BIBLIOGRAPHY.read_text()
    return {key: dict(FIELD.findall(body)) for _, key, body in ENTRY.findall(text)}


def cited(path: Path) -> set[str]:
    return set(KEY.findall(path.read_text()))


def test_every_cited_key_is_in_the_bibliography():
    known = entries()
    missing = [
        f"{path.relative_to(ROOT)}: {key}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for key in sorted(cited(path) - known.keys())
    ]
    assert not missing, "add these to docs/references.bib, or cite the key that stands there"


def test_the_bibliography_has_no_repeated_keys():
    keys = re.findall(r"^@\w+\{([^,]+),", BIBLIOGRAPHY.read_text(), re.MULTILINE)
    assert sorted(keys) == sorted(entries()), "an entry is repeated or cannot be read"
    assert keys == sorted(keys), "entries stand in the order of their keys"


@pytest.mark.parametrize("key", sorted(entries()))
def test_an_entry_is_complete_and_its_key_is_made_of_it(key):
    entry = entries()[key]
    assert {"author", "title", "year"} <= entry.keys()
    assert {"booktitle", "journal", "howpublished", "institution", "eprint"} & entry.keys()
    parts = re.fullmatch(r"([a-z]+)(\d{4})([a-z]+)", key)
    assert parts is not None
    author, year, word = parts.groups()
    assert entry["author"].split(",")[0].lower() == author
    assert entry["year"] == year
    assert word in entry["title"].lower() or key == "zhang2019trades"  # its method's name


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in KINDS for name in names(kind)])
def test_a_registered_class_names_its_source(kind, name):
    cls = lookup(kind, name)
    built = getattr(sys.modules[cls.__module__], cls.__name__.removesuffix("Config"))
    docstrings = f"{cls.__doc__}\n\n{built.__doc__}"  # the settings', or of what they build
    sources = re.findall(r"Source: ([^\n]+)", docstrings)
    assert sources, f"{cls.__name__} has no line 'Source: KEY, section' in its docstring"
    for source in sources:
        assert KEY.search(source) or source.startswith("none"), (
            f"{cls.__name__} must cite a key of docs/references.bib, or say 'Source: none' and why"
        )
