"""Settings: ranges and their messages, names, JSON both ways, dotted overrides."""

import json
import math
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from robustssm.core import config
from robustssm.core.config import (
    Named,
    from_dict,
    lookup,
    names,
    override,
    register,
    settings,
    to_dict,
)


class Tool(Named, ABC):
    kind: ClassVar[str] = "tool"


class Blade(Tool):
    """A family within the kind: a saw is one, a hammer is not."""


@register("hammer")
@settings
class Hammer(Tool):
    weight: Annotated[float, Field(gt=0, le=20)] = 1.5
    strokes: Annotated[int, Field(ge=1)] = 3
    face: Literal["flat", "ball"] = "flat"


@register("saw")
@settings
class Saw(Blade):
    teeth: int = 24
    span: tuple[float, float] = (0.0, 1.0)


@register("vice")
@settings
class Vice(Tool):
    holds: Tool = Hammer()
    spare: Tool | None = None


@settings
class Handle:
    length: float
    wood: str = "ash"


@settings
class Tape:
    metres: float = 5.0


@settings
class Box:
    tools: tuple[Tool, ...] = (Hammer(), Saw())
    extra: tuple[Tool, ...] | None = None
    either: Hammer | Saw | None = None
    measure: Handle | Tape = Tape()
    best: Literal["any"] | Tool = "any"
    by_name: Mapping[str, Tape] = Field(default_factory=dict)
    by_use: Mapping[str, Tool] = Field(default_factory=dict)
    label: str = ""
    folder: Path | None = None
    open: bool = False

    def __post_init__(self) -> None:
        if self.label == "empty" and self.tools:
            raise ValueError("`Box(label='empty')` must hold no tools; got some. Set tools=[].")


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """The kind "tool" for one test; its package stands for any whose modules are all imported."""
    monkeypatch.setitem(config.PACKAGES, "tool", "robustssm.core")
    config._import_all.cache_clear()
    yield
    config._import_all.cache_clear()


# --- validation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, message",
    [
        ({"weight": 0}, r"`Hammer\(weight=\.\.\.\)` must be greater than 0; got 0\."),
        (
            {"weight": 21.0},
            r"`Hammer\(weight=\.\.\.\)` must be less than or equal to 20; got 21\.0",
        ),
        ({"weight": math.nan}, r"`Hammer\(weight=\.\.\.\)` must be .*; got nan\."),
        ({"strokes": 2.5}, r"`Hammer\(strokes=\.\.\.\)` must be a valid integer.*got 2\.5\."),
        ({"face": "round"}, r"`Hammer\(face=\.\.\.\)` must be 'flat' or 'ball'; got 'round'\."),
        ({"wieght": 2.0}, r"No setting of `Hammer` is called 'wieght'\. Did you mean 'weight'\?"),
    ],
)
def test_a_broken_range_says_which_what_and_what_to_do(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        Hammer(**values)
    assert type(caught.value) is ValueError
    assert caught.value.__cause__ is None


def test_every_broken_field_is_reported_at_once():
    with pytest.raises(ValueError) as caught:
        Hammer(weight=-1, strokes=0)
    assert "weight" in str(caught.value) and "strokes" in str(caught.value)


def test_a_missing_value_is_asked_for():
    with pytest.raises(ValueError, match=r"`Handle\(length=\.\.\.\)` must be given"):
        Handle()


def test_a_check_across_fields_speaks_for_itself():
    with pytest.raises(ValueError) as caught:
        Box(label="empty")
    assert str(caught.value) == ("`Box(label='empty')` must hold no tools; got some. Set tools=[].")


def test_settings_are_frozen_keyword_only_values():
    with pytest.raises(AttributeError):
        Hammer().weight = 2.0
    with pytest.raises((TypeError, ValueError)):
        Hammer(2.0)
    assert Hammer(weight=2) == Hammer(weight=2.0)
    assert hash(Hammer(weight=2)) == hash(Hammer(weight=2.0))
    assert Hammer() != Hammer(strokes=4)


# --- names ------------------------------------------------------------------------------------


def test_lookup_gives_the_class_and_names_are_sorted():
    assert lookup("tool", "saw") is Saw
    assert names("tool") == ("hammer", "saw", "vice")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No tool is called 'hamer'\. Did you mean 'hammer'\?"):
        lookup("tool", "hamer")


def test_an_unknown_name_far_from_all_is_answered_with_the_list():
    with pytest.raises(ValueError, match=r"Known: hammer, saw, vice\."):
        lookup("tool", "zzzzz")


@pytest.mark.parametrize("ask", [names, lambda kind: lookup(kind, "pgd")])
def test_an_unknown_kind_is_answered_with_the_nearest(ask):
    with pytest.raises(ValueError, match=r"No kind is called 'atack'\. Did you mean 'attack'\?"):
        ask("atack")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match=r"Every tool must have a name of its own; got 'saw'"):

        @register("saw")
        @settings
        class FretSaw(Tool):
            pass

    assert lookup("tool", "saw") is Saw


def test_a_class_of_the_same_title_elsewhere_is_another_class():
    impostor = type("Hammer", (Tool,), {"__module__": "elsewhere", "__qualname__": "Hammer"})
    with pytest.raises(ValueError, match=r"elsewhere\.Hammer"):
        register("hammer")(impostor)
    assert lookup("tool", "hammer") is Hammer


def test_registering_the_same_class_again_is_allowed():
    assert register("saw")(Saw) is Saw


def test_other_peoples_classes_are_found_by_entry_point(monkeypatch):
    loaded = []

    class Entry:
        def load(self):
            loaded.append(self)

    monkeypatch.setattr(config, "entry_points", lambda group: [Entry()] * (group == "robustssm"))
    names("tool")
    names("tool")
    assert len(loaded) == 1, "entry points are loaded once per kind"


# --- JSON -------------------------------------------------------------------------------------


def test_to_dict_leads_with_the_name_and_holds_defaults():
    assert list(Hammer().to_dict().items()) == [
        ("name", "hammer"),
        ("weight", 1.5),
        ("strokes", 3),
        ("face", "flat"),
    ]


FULL = Box(
    tools=(Vice(holds=Saw(span=(0.25, 0.5)), spare=Hammer(face="ball")), Hammer(weight=2.0)),
    extra=(Saw(teeth=8),),
    either=Saw(teeth=7),
    measure=Handle(length=1.0),
    best=Vice(),
    by_name={"long": Tape(metres=30.0)},
    by_use={"cut": Saw(), "hit": Hammer()},
    label="17",
    folder=Path("a/b"),
    open=True,
)


@pytest.mark.parametrize("box", [Box(), FULL], ids=["defaults", "everything"])
def test_json_gives_back_an_equal_value(box):
    again = from_dict(Box, json.loads(json.dumps(to_dict(box))))
    assert again == box
    assert type(again.either) is type(box.either)
    assert type(again.measure) is type(box.measure)
    assert isinstance(again.tools, tuple)


@given(
    weight=st.floats(min_value=1e-300, max_value=20),
    strokes=st.integers(min_value=1),
    face=st.sampled_from(["flat", "ball"]),
)
def test_numbers_survive_json_exactly(weight, strokes, face):
    hammer = Hammer(weight=weight, strokes=strokes, face=face)
    assert from_dict(Hammer, json.loads(json.dumps(hammer.to_dict()))) == hammer


def test_a_bare_word_stands_for_the_defaults():
    assert from_dict(Tool, "saw") == Saw()
    assert from_dict(tuple[Tool, ...], ["saw", {"name": "hammer", "strokes": 9}]) == (
        Saw(),
        Hammer(strokes=9),
    )


@pytest.mark.parametrize(
    "annotation, data, message",
    [
        (Tool, {"strokes": 1}, r"A tool must say its name, one of: hammer, saw, vice"),
        (Tool, {"name": "saww"}, r"Did you mean 'saw'\?"),
        (Tool, {"name": "saw", "tooth": 3}, r"No setting of `Saw` is called 'tooth'.*'teeth'"),
        (Blade, "hammer", r"'hammer' is a tool but not a Blade"),
        (Box, {"tools": [{"name": "vice", "holds": {"name": "saww"}}]}, r"Did you mean 'saw'\?"),
        (Box, {"extra": ["saww"]}, r"Did you mean 'saw'\?"),
        (Box, {"best": "hamer"}, r"Did you mean 'hammer'\?"),
        (Box, {"either": {"name": "vice"}}, r"'vice' is a tool but not a Hammer"),
        (Box, {"measure": {"lenght": 3}}, r"No setting of `Handle` is called 'lenght'.*'length'"),
        (Saw, {"name": "saw", "span": [0, 1, 2]}, r"`Saw\(span.*\)` must"),
        (Saw, {"name": "saw", "span": [0]}, r"`Saw\(span.*must"),
    ],
)
def test_what_json_cannot_mean_is_refused(annotation, data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(annotation, data)


def test_a_union_takes_the_class_that_is_named_or_has_the_fields():
    assert from_dict(Box, {"either": {"name": "saw"}}).either == Saw()
    assert from_dict(Box, {"either": "saw"}).either == Saw()
    assert from_dict(Box, {"measure": {"metres": 2}}).measure == Tape(metres=2.0)
    assert from_dict(Box, {"measure": {"length": 2}}).measure == Handle(length=2.0)
    assert from_dict(Box, {"best": "any"}).best == "any"
    assert from_dict(Box, {"best": "saw"}).best == Saw()


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, text, read",
    [
        ("label", "spare", lambda box: box.label == "spare"),
        ("label", "17", lambda box: box.label == "17"),
        ("label", '"quoted"', lambda box: box.label == "quoted"),
        ("open", "true", lambda box: box.open is True),
        ("folder", "x/y", lambda box: box.folder == Path("x/y")),
        ("extra", "null", lambda box: box.extra is None),
        ("extra", '["saw"]', lambda box: box.extra == (Saw(),)),
        ("tools", "[]", lambda box: box.tools == ()),
        ("tools.0", "saw", lambda box: box.tools[0] == Saw()),
        ("tools.1.weight", "1e-3", lambda box: box.tools[1].weight == 1e-3),
        ("tools.0.holds.span", "[0.5, 2]", lambda box: box.tools[0].holds.span == (0.5, 2.0)),
        ("tools.0.holds.span.1", "0.75", lambda box: box.tools[0].holds.span == (0.25, 0.75)),
        ("tools.0.holds", "hammer", lambda box: box.tools[0].holds == Hammer()),
        ("tools.0.spare", "null", lambda box: box.tools[0].spare is None),
        ("extra.0", '{"name": "hammer"}', lambda box: box.extra == (Hammer(),)),
        ("either", "hammer", lambda box: box.either == Hammer()),
        ("measure", '{"metres": 1}', lambda box: box.measure == Tape(metres=1.0)),
        ("by_name.long.metres", "7", lambda box: box.by_name == {"long": Tape(metres=7.0)}),
        ("by_name.short.metres", "1", lambda box: box.by_name["short"] == Tape(metres=1.0)),
        ("by_use.cut", "hammer", lambda box: box.by_use["cut"] == Hammer()),
    ],
)
def test_a_dotted_path_sets_one_thing(path, text, read):
    changed = override(FULL, {path: text})
    assert read(changed)
    assert type(changed) is Box


def test_overrides_are_applied_in_order_and_leave_the_original():
    before = to_dict(FULL)
    changed = override(FULL, {"tools.0": "hammer", "tools.0.strokes": "8"})
    assert changed.tools == (Hammer(strokes=8), Hammer(weight=2.0))
    assert to_dict(FULL) == before


@pytest.mark.parametrize(
    "path, text, message",
    [
        ("lable", "x", r"`lable`: No setting of `Box` is called 'lable'\. Did you mean 'label'\?"),
        ("tools.1.wieght", "1", r"`tools\.1\.wieght`.*Did you mean 'weight'\?"),
        ("tools.1.weight", "-1", r"`Hammer\(weight=\.\.\.\)` must be greater than 0; got -1\."),
        ("tools.1.weight", "heavy", r"`Hammer\(weight=\.\.\.\)` must be a valid number"),
        ("tools.2.weight", "1", r"must have an index from 0 to 1 where it has '2'"),
        ("tools.weight", "1", r"must have an index from 0 to 1 where it has 'weight'"),
        ("tools.-1.weight", "1", r"must have an index from 0 to 1 where it has '-1'"),
        ("tools.0", "hamer", r"Did you mean 'hammer'\?"),
        ("label.size", "1", r"must end where a plain value stands; got '\.size' below '17'"),
        ("measure.length.cm", "1", r"Drop '\.cm'"),
    ],
)
def test_a_wrong_path_or_value_is_refused(path, text, message):
    with pytest.raises(ValueError, match=message):
        override(FULL, {path: text})


def test_an_override_that_needs_another_waits_for_it():
    made = override(Box(), {"label": "empty", "tools": "[]"})
    assert (made.label, made.tools) == ("empty", ())
    made = override(Box(), {"tools.0.teeth": "7", "tools.0": "saw"})
    assert made.tools[0] == Saw(teeth=7)


def test_of_overrides_that_are_all_wrong_the_first_is_reported():
    with pytest.raises(ValueError, match="weigth"):
        override(Hammer(), {"weigth": "2", "strokes": "0"})
