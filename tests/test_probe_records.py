"""Probe results: places, bounds that hold or not, joining, and JSON that loses nothing."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.records import Axis, ProbeResult, Quantity, join, violations

LAYER = Axis(name="layer", labels=("0", "1"))
PART = Axis(name="part", labels=("a", "b", "c"))


def quantity(name="q", values=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), axes=(LAYER, PART), **more):
    return Quantity(name=name, text="A number.", values=values, axes=axes, **more)


def result(*quantities, **more):
    return ProbeResult(probe="made", settings={"n": 3}, quantities=quantities, **more)


def test_places_are_in_the_order_of_the_values():
    q = quantity()
    assert q.at(layer="1", part="a") == 4 and q.where(part="c") == (3, 6)
    assert q.places[4] == {"layer": "1", "part": "b"}
    with pytest.raises(KeyError, match="3 values"):
        q.at(layer="0")


def test_sizes_labels_and_names_that_contradict_are_refused():
    with pytest.raises(ValueError, match="6 places; got 2"):
        quantity(values=(1.0, 2.0))
    with pytest.raises(ValueError, match="differ"):
        Axis(name="layer", labels=("0", "0"))
    with pytest.raises(ValueError, match="both `bounds` and `side`"):
        quantity(bounds="r")
    with pytest.raises(ValueError, match="once"):
        result(quantity(), quantity())


numbers = st.one_of(st.none(), st.floats(allow_nan=False))


@given(st.lists(numbers, min_size=6, max_size=6))
def test_json_gives_back_what_it_was_given(values):
    made = result(quantity(values=tuple(values)), remarks=("Said.",), provenance={"commit": "a"})
    text = json.dumps(made.to_dict(), allow_nan=False)  # strict JSON, whatever the numbers are
    assert ProbeResult.from_dict(json.loads(text)) == made


def test_nan_survives():
    made = result(quantity(values=(math.nan,), axes=()))
    read = ProbeResult.from_dict(json.loads(json.dumps(made.to_dict())))
    assert math.isnan(read.quantity("q").values[0])


def test_violations_are_found_where_they_are():
    measured = quantity(values=(1.0, 2.0, None, 0.0, -1.0, 5.0))
    upper = quantity("u", (1.0, 1.9, 0.0, 1.0, math.inf, None), bounds="q", side="upper")
    lower = quantity("l", (1.0, 2.0, 3.0, -1.0, -2.0, 5.0), bounds="q", side="lower")
    assert violations(result(measured, lower)) == ()
    (found,) = violations(result(measured, upper))
    assert "u at {'layer': '0', 'part': 'b'} is 1.9, q is 2.0" in found
    (missing,) = violations(result(upper))
    assert "not there" in missing


def test_a_bound_that_is_no_number_is_a_violation():
    measured = quantity(values=(1.0,), axes=())
    nan = quantity("u", (math.nan,), (), bounds="q", side="upper")
    assert violations(result(measured, nan))


def test_joined_results_have_a_new_first_axis():
    first, second = result(quantity()), result(quantity(values=(0.0,) * 6), remarks=("Second.",))
    joined = join({"train": first, "test": second}, "split")
    q = joined.quantity("q")
    assert [axis.name for axis in q.axes] == ["split", "layer", "part"]
    assert q.at(split="train", layer="1", part="c") == 6
    assert q.where(split="test") == (0.0,) * 6 and joined.remarks == ("Second.",)
    with pytest.raises(ValueError, match="same quantities and axes"):
        join({"a": first, "b": result(quantity("r"))}, "split")
    with pytest.raises(KeyError, match="no quantity 'r'"):
        joined.quantity("r")
