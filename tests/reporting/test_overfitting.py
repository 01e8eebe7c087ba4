"""Figures 1, 2 and 5, and the gaps of robust overfitting with their intervals."""

import re
from xml.etree import ElementTree

import pytest

from robustssm.reporting import cells, overfitting, overfitting_figures, style
from robustssm.reporting.base import Figure, Table
from robustssm.reporting.intervals import newcombe, of_mean
from robustssm.reporting.load import load
from robustssm.reporting.pairs import paired
from tests.reporting import probed
from tests.reporting.synthetic import result, write_run

SVG = "{http://www.w3.org/2000/svg}"
MONITOR = {"train": 200, "test": 200, "every": 1}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg, colour):
    paths = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: {colour}', svg)
    return [path.count("L") + 1 for path in paths if path.count("L") > 3]


def watched(path, at, *, adversarial=True, **more):
    best, last = result(0.9, {"pgd-10": 0.6}), result(0.9, {"pgd-10": 0.5})
    more = {"monitor": MONITOR, "best": best, "last": last, "best_epoch": 5, "epochs": 8} | more
    write_run(path, **more)
    probed.write_history(path, 8, at, adversarial=adversarial)


@pytest.fixture
def groups(tmp_path):
    watched(tmp_path / "a", 0, layer="s4")
    watched(tmp_path / "b", 1, layer="dss")
    watched(tmp_path / "c", 1, layer="dss", method="standard", adversarial=False)
    return cells.groups(load([tmp_path]).finished)


def blocks(groups):
    return list(overfitting.blocks(groups, marks={}, level=0.95))


def test_every_structure_is_in_one_panel_per_split_and_quantity(groups):
    svg = overfitting_figures.curves([groups], "TRADES", ("S4", "DSS"))
    assert lines(svg, style.SERIES[0]) == lines(svg, style.SERIES[1]) == [8] * 8
    titles = [
        f"{split}, {q}"
        for q in ("loss", "accuracy")
        for split in overfitting_figures.COLUMNS.values()
    ]
    assert [text for text in texts(svg) if ", " in text] == titles


def test_what_standard_training_did_not_watch_has_no_column(groups):
    svg = overfitting_figures.curves([groups], "Standard", ("S4", "DSS"))
    assert lines(svg, style.SERIES[0]) == [] and lines(svg, style.SERIES[1]) == [8] * 6
    assert "adversarial train, loss" not in texts(svg)


def test_the_paper_s_figures_are_named(groups):
    figures = [block for block in blocks(groups) if isinstance(block, Figure)]
    assert [figure.name for figure in figures] == ["overfitting-1-1", "overfitting-2-1"]
    assert "Figure 5 of the paper" in figures[0].caption
    assert "Figure 2 of the paper" in figures[1].caption


def test_gaps_of_one_run_have_intervals_over_examples(groups):
    (table,) = (block for block in blocks(groups) if isinstance(block, Table))
    rows = {
        (group.title.split("; ")[1], row.head): row.cells
        for group in table.groups
        for row in group.rows
    }
    s4 = next(g for g in groups if g.structure == "S4").runs[0]
    lost, train, test, at_best, at_last = rows["TRADES", "S4"]
    best, last = (s4.checkpoints[name].result for name in ("best", "last"))
    low, high = paired(best.robust, last.robust)
    assert lost.value == "+10.0"
    assert lost.details == (f"[{cells.signed(100 * low)}, {cells.signed(100 * high)}]",)
    values = s4.epochs[-1].values
    a, b = (round(200 * values[f"{split}_adversarial_accuracy"]) for split in ("train", "test"))
    assert (train.value, test.value) == (f"{a / 2:.1f}", f"{b / 2:.1f}")
    low, high = newcombe(a, 200, b, 200)
    assert at_last.value == cells.signed((a - b) / 2)
    assert at_last.details == (f"[{cells.signed(100 * low)}, {cells.signed(100 * high)}]",)
    assert at_best.value != at_last.value
    assert [cell.state for cell in rows["Standard", "DSS"][1:]] == [
        "missing",
        "value",
        *["missing"] * 2,
    ]


def test_gaps_of_seeds_have_student_s_interval(tmp_path):
    for seed in (0, 1, 2):
        watched(tmp_path / f"{seed}", 0.5 * seed, seed=seed)
    (group,) = cells.groups(load([tmp_path]).finished)
    gaps = [
        overfitting.watched(run, "train", 8) - overfitting.watched(run, "test", 8)
        for run in group.runs
    ]
    low, high = of_mean(gaps)
    cell = overfitting.table([group], marks={}, level=0.95).groups[0].rows[0].cells[-1]
    assert cell.value == cells.signed(100 * sum(gaps) / 3)
    assert cell.details == (f"[{cells.signed(100 * low)}, {cells.signed(100 * high)}]", "3 seeds")


def test_without_the_number_of_examples_there_is_no_interval(tmp_path):
    watched(tmp_path / "a", 0, monitor={"train": 333, "test": 200})
    watched(tmp_path / "b", 0, monitor=None, layer="dss")
    groups = cells.groups(load([tmp_path]).finished)
    runs = [group.runs[0] for group in groups]
    assert [overfitting.examples(run, "train") for run in runs] == [None, None]
    assert [overfitting.examples(run, "test") for run in runs] == [200, None]
    for row in overfitting.table(groups, marks={}, level=0.95).groups[0].rows:
        assert row.cells[-1].details == ("n not recorded",)


def test_training_that_watched_no_test_examples_says_nothing(tmp_path):
    write_run(tmp_path / "a")
    assert blocks(cells.groups(load([tmp_path]).finished)) == []


def test_data_sets_stand_one_below_the_other(tmp_path):
    watched(tmp_path / "a", 0)
    watched(tmp_path / "b", 0, dataset={"name": "mnist"})
    groups = cells.groups(load([tmp_path]).finished)
    (figure,) = (block for block in blocks(groups) if isinstance(block, Figure))
    found = texts(figure.panels[0])
    assert "digits: train, loss" in found and "MNIST: adversarial test, accuracy" in found
    assert lines(figure.panels[0], style.SERIES[0]) == [8] * 16
