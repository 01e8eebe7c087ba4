"""Figures 3 and 4: bars equal the numbers, and the claim is judged by its rule."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.reporting import attribution, cells, feature_figures, looks, style
from robustssm.reporting.base import Figure
from robustssm.reporting.load import load
from tests.reporting import probed
from tests.reporting.synthetic import write_run

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def heights(svg, colour, *, hatched):
    """Signed heights of the bars of a colour, upwards positive, from left to right."""
    fill = r"url\(#[^)]*\)" if hatched else colour
    found = re.findall(
        rf'<path d="([^"]*)" clip-path="[^"]*" style="fill: {fill}; stroke: {colour}', svg
    )
    corners = [
        [tuple(map(float, p.split())) for p in re.findall(r"[-\d.]+ [-\d.]+", d)] for d in found
    ]
    return [bar[0][1] - bar[2][1] for bar in corners]


@pytest.fixture
def groups(tmp_path):
    relu = {"form": "scale", "activation": "relu"}
    for name, factor, more in (
        ("s4", 1.0, {}),
        ("mega", 2.0, {"layer": "mega"}),
        ("ads", 1.5, {"scaling": relu}),
    ):
        path = write_run(tmp_path / name, **more)
        has = probed.HAS.get(name, (*probed.HAS["s4"], "ads"))
        probed.write_probes(path, [probed.feature_shift(has, factor)])
    return cells.groups(load([tmp_path]).finished)


def test_bars_are_means_over_layers_and_equal_the_numbers(groups):
    made = feature_figures.changes(groups, "kl_change")
    assert made["S4", "ssm", "train"] == pytest.approx((0.8 * 1.05,))
    assert made["Mega", "ssm", "test"] == pytest.approx((0.8 * 1.05 * 2 * 0.8,))
    assert ("S4", "attention", "train") not in made
    svg = feature_figures.bars(groups, ("S4", "Mega"))
    for at, (structure, parts) in enumerate((("S4", 4), ("Mega", 6))):
        for split, hatched in (("train", False), ("test", True)):
            drawn = heights(svg, style.SERIES[at], hatched=hatched)
            assert len(drawn) == 2 * parts  # KL above MSE
            wanted = [
                values[structure, part, split][0]
                for values in (made, feature_figures.changes(groups, "mse_change"))
                for part in feature_figures.components([made])
                if (structure, part, split) in values
            ]
            for half in (slice(0, parts), slice(parts, None)):  # each panel has its own scale
                scale = {round(d / w, 2) for d, w in zip(drawn[half], wanted[half], strict=True)}
                assert max(scale) - min(scale) < 0.02 * max(scale)
                assert all(value > 0 for value in scale)
    assert {"SSM", "linear", "attention", "train", "test", "Mega"} <= set(texts(svg))


def test_the_axis_is_logarithmic_where_values_span_decades(tmp_path):
    path = write_run(tmp_path / "a")
    probed.write_probes(path, [probed.feature_shift(("ssm", "linear"), 100.0)])
    svg = feature_figures.bars(cells.groups(load([tmp_path]).finished), ("S4",))
    assert {"+100\xa0%", "+1,000\xa0%", "0\xa0%"} <= set(texts(svg))
    ssm, linear = heights(svg, style.SERIES[0], hatched=False)[:2]
    assert ssm > 0 > linear and ssm / -linear < 20  # 84 and -0.42


def test_variants_have_a_figure_and_colours_of_their_own(groups):
    assert [(f.structures, f.scaled) for f in looks.families(groups)] == [
        (("S4", "Mega"), False),
        (("S4 + AdS-ReLU",), True),
    ]
    figures = [b for b in attribution.blocks(groups) if isinstance(b, Figure)]
    assert [f.name for f in figures] == ["shift-1-1-1", "shift-1-1-2", "shift-map-1"]
    assert "Figure 3 of the paper" in figures[0].caption
    assert "Figure 4 of the paper" in figures[1].caption
    assert "AdS" in texts(figures[1].panels[0])
    for figure in figures:
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure.panels[0])) <= set(style.VARIABLES)


def test_seeds_are_their_mean_with_a_line_of_their_range(tmp_path):
    for seed in (0, 1):
        path = write_run(tmp_path / f"{seed}", seed=seed)
        probed.write_probes(path, [probed.feature_shift(("ssm",), 1.0 + seed)])
    (group,) = cells.groups(load([tmp_path]).finished)
    assert feature_figures.changes([group], "kl_change")["S4", "ssm", "train"] == pytest.approx(
        (0.84, 1.68)
    )
    (row,) = attribution.claims([group]).groups[0].rows
    assert row.cells[0].value == "confirmed"
    assert row.cells[0].details == (
        "train +126\xa0%",
        "[+84, +168]",
        "test +101\xa0%",
        "[+67, +134]",
    )


changes = st.lists(st.floats(-5, 50), min_size=1, max_size=6)


@given(changes, st.sampled_from([1, -1]))
def test_the_claim_is_confirmed_by_all_signs_or_by_none(values, sign):
    word = attribution.judge(values, sign)
    assert (word == "confirmed") == (min(sign * v for v in values) > 0)
    assert (word == "not confirmed") == (max(sign * v for v in values) <= 0)
    assert attribution.judge([*values, math.inf], sign) == "cannot tell"
    assert attribution.judge([], sign) == "cannot tell"


def test_the_map_shows_what_is_stored(groups):
    made = feature_figures.shift_map(groups[0])
    assert list(made) == ["0", "1"] and all(len(row) == probed.POSITIONS for row in made.values())
    assert made["1"][9] == pytest.approx(2 * (1 + math.sin(1)) * 0.05 + 0.01)
    edges = feature_figures._edges([0.01, 0.5, 20.0])
    assert edges[0] == pytest.approx(0.01) and edges[-1] == pytest.approx(20.0)
    levels = [feature_figures._level(v, edges) for v in (0.01, 0.3, 20.0)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == feature_figures.SHADES - 1
    svg = feature_figures.heat(groups, ["TRADES"])
    assert "<image" not in svg  # a page that loads nothing shows none
    assert {"S4 · TRADES", "Mega · TRADES", "position", "layer"} <= set(texts(svg))


def test_numbers_stand_below_with_what_has_no_scale(groups):
    made = attribution.table(groups)
    assert made.groups[0].title == "S4, TRADES"
    row = made.groups[0].rows[0]
    assert row.head == "SSM"
    assert [cell.value for cell in row.cells[:5]] == [
        "+84\xa0%", "+67\xa0%", "+59\xa0%", "+47\xa0%", "0.1 → 0.1",
    ]  # fmt: skip
