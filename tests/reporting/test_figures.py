"""Drawings: well-formed, the same every time, and showing what was measured and nothing else."""

import json
import re
from xml.etree import ElementTree

import pytest

from robustssm.records import Flagged
from robustssm.reporting import cells, figures, style
from robustssm.reporting.load import load
from tests.reporting.synthetic import ATTACKS, result, write_run

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg, colour):
    """Drawn curves of a colour; grid, axes and legend have other clips."""
    paths = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: {colour}', svg)
    return [path.count("L") + 1 for path in paths]


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "a", splits=("train", "validation", "test"))
    return load([tmp_path]).finished[0]


def test_a_run_has_six_curves_with_a_point_per_epoch(run):
    svg = figures.run_curves(run, "accuracy")
    assert lines(svg, style.CLEAN) == [4, 4, 4]
    assert lines(svg, style.ADVERSARIAL) == [4, 4, 4]
    assert {"clean, test", "adversarial, train", "best checkpoint", "100 %"} <= set(texts(svg))


def test_the_legend_names_only_what_was_measured(tmp_path):
    write_run(tmp_path / "a", splits=("train",))
    found = texts(figures.run_curves(load([tmp_path]).finished[0], "loss"))
    assert "clean, train" in found
    assert not [text for text in found if "validation" in text or "test" in text]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    path = write_run(tmp_path / "a", splits=("train",), epochs=3)
    with (path / "metrics.jsonl").open("a") as file:
        for epoch, value in ((2, float("nan")), (3, float("inf"))):
            record = {"kind": "epoch", "epoch": epoch, "step": 1, "train_loss": value}
            file.write(json.dumps(record) + "\n")
    run = load([tmp_path]).finished[0]
    svg = figures.run_curves(run, "loss")
    assert "nan" not in svg and "inf" not in svg
    assert lines(svg, style.CLEAN) == lines(svg, style.ADVERSARIAL) == [1]


def test_the_loss_is_logarithmic_where_small_losses_would_vanish(tmp_path):
    path = write_run(tmp_path / "a", splits=("train",), epochs=2)
    lines = ""
    for epoch, value in ((1, 2.0), (2, 0.01)):
        lines += (
            json.dumps({"kind": "epoch", "epoch": epoch, "step": 1, "train_loss": value}) + "\n"
        )
    (path / "metrics.jsonl").write_text(lines)
    assert {"0.01", "0.1", "1"} <= set(
        texts(figures.run_curves(load([tmp_path]).finished[0], "loss"))
    )


def test_the_overview_has_a_panel_per_cell_and_says_where_there_is_no_run(tmp_path):
    write_run(tmp_path / "a", layer="s4", method="trades")
    write_run(tmp_path / "b", layer="s4", method="trades", seed=1)
    write_run(tmp_path / "c", layer="dss", method="standard")
    groups = cells.groups(load([tmp_path]).finished)
    svg = figures.overview(groups, "accuracy")
    found = texts(svg)
    titles = [text for text in found if " · " in text]
    assert titles == ["S4 · Standard", "S4 · TRADES", "DSS · Standard", "DSS · TRADES"]
    assert found.count("no run") == 2
    assert len(lines(svg, style.ADVERSARIAL)) == 6  # three runs, two splits


def test_accuracies_show_intervals_and_what_is_not_to_be_believed(tmp_path):
    sign = Flagged(name="masking", message="no gradient", severity="invalid")
    write_run(tmp_path / "a", layer="s4", best=result(0.9, ATTACKS, warnings=(sign,)))
    write_run(tmp_path / "b", layer="dss", best=result(0.9, {}))
    groups = cells.groups(load([tmp_path]).finished)
    svg = figures.accuracies(groups, "TRADES", ["S4", "DSS", "S5"], level=0.95)
    found = texts(svg)
    assert {"S4", "DSS", "S5", "no run", "not to be believed", "TRADES"} <= set(found)
    assert len(lines(svg, style.CLEAN)) == 2
    assert len(lines(svg, style.ADVERSARIAL)) == 1  # DSS was not attacked


def test_names_from_files_are_text(tmp_path):
    name = "a$b_{c}$ </text><script>&"
    write_run(tmp_path / "a", layer=name, method="\u4f60\u597d")
    groups = cells.groups(load([tmp_path]).finished)
    svg = figures.overview(groups, "loss")
    assert "<script" not in svg
    assert f"{name} · \u4f60\u597d" in texts(svg)


def test_a_drawing_is_the_same_every_time(run):
    assert figures.run_curves(run, "loss") == figures.run_curves(run, "loss")


def test_colours_can_all_be_replaced_by_the_page(run):
    svg = figures.run_curves(run, "loss")
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(style.VARIABLES)
