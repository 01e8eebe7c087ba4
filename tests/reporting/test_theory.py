"""Bounds, growth and spectra: drawn where they are, and what does not hold is listed."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from robustssm.records import violations
from robustssm.reporting import cells, spectrum_figures, style, theory, theory_figures
from robustssm.reporting.base import Figure, Notes, Paragraph, Table
from robustssm.reporting.load import load
from tests.reporting import probed
from tests.reporting.synthetic import write_run

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def groups_of(tmp_path, **results):
    for name, found in results.items():
        probed.write_probes(write_run(tmp_path / name, layer=name), found)
    return cells.groups(load([tmp_path]).finished)


def test_a_line_holds_its_value_and_all_its_bounds():
    first, second, third, _ = theory_figures.lines(probed.error_bounds())
    assert (first.target, first.place, first.value) == ("exact", "layer 0", 3.0)
    assert first.beside == ("measured", 3.01)
    assert {name: value for name, _, value in second.limits} == {
        "upper_l1": 80.0, "upper_hinf": 18.0, "lower_mean": 0.8,
    }  # fmt: skip
    assert (third.target, third.value) == ("exact_without_skip", 2.5)  # what the theorem is about
    assert third.limits == (("printed_upper", "upper", 700.0), ("printed_lower", "lower", 0.01))
    for line in (first, second, third):
        assert not list(line.violated())


def test_printed_bounds_are_held_to_what_they_claim():
    lines = theory_figures.lines(probed.error_bounds(violated=True))
    assert [[name for name, _, _ in line.violated()] for line in lines] == [
        [], [], ["printed_upper"], ["printed_upper"],
    ]  # fmt: skip


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_violations_are_those_of_the_records(values):
    axes = [probed.axis("layer", 1)]
    exact, upper, lower = (lambda _, v=v: v for v in values)
    result = probed.of(
        "error_bounds",
        probed.quantity("exact", axes, exact),
        probed.quantity("u", axes, upper, bounds="exact", side="upper"),
        probed.quantity("l", axes, lower, bounds="exact", side="lower"),
    )
    found = [each for line in theory_figures.lines(result) for each in line.violated()]
    assert len(found) == len(violations(result))


def test_the_drawing_has_values_and_bounds_in_their_order():
    svg = theory_figures.intervals(theory_figures.lines(probed.error_bounds()), "S4")
    assert {
        "exact · layer 0",
        "exact without skip · layer 1",
        "value",
        "measured",
        "upper bound",
        "lower as printed",
    } <= set(texts(svg))
    assert "upper as printed, violated" not in texts(svg)
    rows = theory_figures.lines(probed.error_bounds(violated=True))
    broken = theory_figures.intervals(rows, "S4")
    assert "upper as printed, violated" in texts(broken)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(style.VARIABLES)


def test_printed_bounds_that_fail_are_counted_and_listed(tmp_path):
    groups = groups_of(
        tmp_path, s4=[probed.error_bounds()], dss=[probed.error_bounds(violated=True)]
    )
    said, table, figure = theory.bounds(groups)
    assert isinstance(said, Paragraph) and "2 of 8." in said.text
    assert said.text.endswith("upper 62.5 % (at most 100.0 %).")
    assert isinstance(table, Table) and isinstance(figure, Figure)
    first, second = table.groups[0].rows
    assert [c.value for c in first.cells] == [
        "DSS, TRADES", "layer 0", "printed upper", "upper", "0", "2.5", "∞",
    ]  # fmt: skip
    assert second.cells[1].value == "layer 1"
    assert len(figure.panels) == 2


def test_a_proper_bound_that_fails_is_an_alarm(tmp_path):
    axes = [probed.axis("layer", 1)]
    wrong = probed.of(
        "error_bounds",
        probed.quantity("exact", axes, lambda _: 3.0),
        probed.quantity("upper_l1", axes, lambda _: 2.0, bounds="exact", side="upper"),
    )
    alarm, notes, _ = theory.bounds(groups_of(tmp_path, s4=[wrong]))
    assert isinstance(alarm, Paragraph) and "should hold and do not" in alarm.text
    assert isinstance(notes, Notes) and notes.notes[0].severity == "invalid"
    assert notes.notes[0].text == "s4: upper_l1 at layer 0 is 2, exact is 3."


def test_growth_has_a_line_per_layer_and_cause():
    result = probed.error_growth(terms=True)
    sizes = theory_figures.growth(result, "Mamba")
    shares = theory_figures.growth(result, "Mamba", shares=True)
    assert {"growth", "input shift", "position"} <= set(texts(sizes))
    assert {"frozen", "shift", "cross", "position"} <= set(texts(shares))
    for svg, colours in ((sizes, style.SERIES[:2]), (shares, style.SERIES[:3])):
        for colour in colours:
            found = re.findall(
                rf'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: {colour}', svg
            )
            assert len([p for p in found if p.count("L") > 3]) == probed.LAYERS
    assert not theory_figures.grows(probed.of("error_growth"))
    assert not theory_figures.grows(probed.error_growth(), shares=True)


def test_shares_are_drawn_only_where_causes_differ():
    axes = [probed.axis("layer", 1), probed.axis("position", 4)]
    linear = probed.of(
        "error_growth",
        probed.quantity("frozen_by_position", axes, lambda la, t: 1.0),
        probed.quantity("shift_by_position", axes, lambda la, t: 0.0),
    )
    assert not theory_figures.grows(linear, shares=True)


def test_eigenvalues_lie_where_they_are_and_many_are_thinned(monkeypatch):
    result = probed.spectrum()
    dots = spectrum_figures._dots(result)
    assert list(dots) == ["initial", "best"]
    real = result.quantity("eigenvalue_real").where(checkpoint="best")
    assert tuple(dots["best"][0]) == real
    monkeypatch.setattr(spectrum_figures, "DOTS", 10)
    thinned = spectrum_figures._dots(result)["best"][0]
    assert len(thinned) <= 10 and set(thinned) <= set(real)
    svg = spectrum_figures.disc([("S4 · TRADES", result)], 1)
    assert {"S4 · TRADES", "before training", "best checkpoint"} <= set(texts(svg))


def test_the_table_of_spectra_has_means_over_layers(tmp_path):
    blocks = list(theory.spectrum(groups_of(tmp_path, s4=[probed.spectrum()])))
    assert [type(block).__name__ for block in blocks] == ["Figure", "Figure", "Table"]
    table = blocks[-1]
    at = table.columns.index(("Memory horizon", "best"))
    assert table.groups[0].rows[0].cells[at].value == "32.5"


def test_models_without_what_is_drawn_are_left_out(tmp_path):
    groups = groups_of(tmp_path, mamba=[probed.error_growth(terms=True)])
    assert list(theory.bounds(groups)) == list(theory.spectrum(groups)) == []
    assert len(list(theory.growth(groups))) == 1
