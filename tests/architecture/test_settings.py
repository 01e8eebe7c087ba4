"""Settings of every registered class survive JSON, wherever they are defined."""

import json

import pytest

from robustssm.core.config import PACKAGES, Named, from_dict, lookup, names

EVERYTHING = [(kind, name) for kind in PACKAGES for name in names(kind)]


REQUIRED = {
    ("dataset", "arrays"): {"path": "a.npz"},
    ("dataset", "parquet"): {"path": "a"},
    ("model", "sequence_classifier"): {"layer": "s4"},
}
"""Fields without a default, for classes that have some and offer no `samples()`."""


def samples(cls: type[Named]) -> tuple[Named, ...]:
    """What the class offers to the contract tests, or its defaults."""
    if hasattr(cls, "samples"):
        return cls.samples()
    return (from_dict(base(cls), {"name": cls.name, **REQUIRED.get((cls.kind, cls.name), {})}),)


def base(cls: type[Named]) -> type[Named]:
    """The most general class of its kind: what a recipe's field is annotated with."""
    return [c for c in cls.__mro__ if issubclass(c, Named) and "kind" in vars(c)][-1]


def test_something_is_registered_for_most_kinds():
    assert {kind for kind, _ in EVERYTHING} >= {"attack", "dataset", "layer", "objective"}


@pytest.mark.parametrize("kind, name", EVERYTHING)
def test_settings_survive_json(kind, name):
    cls = lookup(kind, name)
    assert cls.kind == kind and cls.name == name
    values = samples(cls)
    assert values, f"{cls.__name__}.samples() must offer at least one value"
    for value in values:
        data = json.loads(json.dumps(value.to_dict(), allow_nan=False))
        assert data["name"] == name
        again = from_dict(base(cls), data)
        assert again == value and type(again) is cls


@pytest.mark.parametrize("kind, name", EVERYTHING)
def test_a_misspelt_setting_is_refused(kind, name):
    data = samples(lookup(kind, name))[0].to_dict() | {"no_such_setting": 1}
    with pytest.raises(ValueError, match=r"No setting of .* is called 'no_such_setting'"):
        from_dict(base(lookup(kind, name)), data)


@pytest.mark.parametrize("kind, name", EVERYTHING)
def test_a_registered_name_is_a_word_of_the_command_line(kind, name):
    assert name.isascii() and name.islower() and name.replace("_", "").isalnum()
