"""Published numbers: kept as printed, and beside the published setting only."""

import pytest

from robustssm.reporting import cells, load, published, tables
from tests.reporting.synthetic import result, write_run

CIFAR = {"norm": "linf", "eps": 0.031, "bounds": [0.0, 1.0]}
MODEL = {"d_model": 128, "num_layers": 4, "layer": {"name": "s4"}}


def cell(path, *, threat=CIFAR, model=MODEL, dataset=None, **settings):
    best = result(0.6, {"pgd-10": 0.4, "autoattack_standard": 0.3}, threat=threat)
    data = {"name": "cifar10"} | (dataset or {})
    given = {"epochs": 180, "batch_size": 256, "model": model} | settings
    write_run(path, dataset=data, method="pgd_training", best=best, last=best, **given)
    (group,) = cells.groups(load.load([path]).finished)
    return group


def test_there_are_52_rows_with_six_numbers_each():
    rows = published.table()
    assert len(rows) == 52
    assert all(len([v for v in row.numbers.values() if v is not None]) == 6 for row in rows)
    assert len({(row.dataset, row.structure, row.method) for row in rows}) == 52


def test_rows_are_found_by_our_names():
    row = published.row("CIFAR-10", "DSS + AdS-ReLU", "TRADES")
    assert row.numbers["clean", "best"] == 69.39 and row.source == "version 1 table 2"
    assert published.row("CIFAR-10", "DSS + AdSS-ReLU", "TRADES") == row
    assert published.row("CIFAR-10", "Mega", "TRADES") is None  # not printed, never guessed


@pytest.mark.parametrize(
    "key, number",
    [
        (cells.CLEAN, 64.67),
        ("pgd-10", 36.19),
        ("pgd_released-10", 36.19),
        ("autoattack_standard", 30.90),
        ("autoattack_adapted", None),
        ("pgd-50x5", None),
        (cells.WORST, None),
    ],
)
def test_only_the_same_attack_has_a_number(tmp_path, key, number):
    assert published.beside(cell(tmp_path / "a"), key, "best") == number


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": {"train_limit": 1000}},
        {"dataset": {"pool": 2}},
        {"dataset": {"name": "digits"}},
        {"threat": CIFAR | {"eps": 0.05}},
        {"threat": CIFAR | {"norm": "l2"}},
        {"threat": CIFAR | {"window": {"length": 4}}},
        {"epochs": 20},
        {"batch_size": 64},
        {"model": MODEL | {"d_model": 64}},
    ],
    ids=str,
)
def test_another_setting_has_no_published_number(tmp_path, change):
    assert published.beside(cell(tmp_path / "a", **change), cells.CLEAN, "best") is None


def test_the_headline_shows_the_number_and_the_difference(tmp_path):
    group = cell(tmp_path / "a")
    table = tables.headline([group], marks={}, level=0.95)
    row = dict(zip(table.columns, table.groups[0].rows[0].cells, strict=True))
    assert row["PGD-AT", "Clean", "Published"].value == "64.67"
    gap = row["PGD-AT", "Clean", "Minus published"]
    assert gap.value == "\N{MINUS SIGN}4.7" and len(gap.details) == 1
    assert row["PGD-AT", "Evaluation", "Verdict"].tone == "reliable"


def test_without_counterparts_there_are_no_columns_but_an_orientation(tmp_path):
    group = cell(tmp_path / "a", dataset={"name": "digits"})
    table = tables.headline([group], marks={}, level=0.95)
    assert not any("ublished" in head for column in table.columns for head in column)
    beside = published.orientation([group])
    assert "nothing may be subtracted" in beside.caption
    assert [c.value for c in beside.groups[0].rows[0].cells][3:] == ["64.67", "36.19", "30.90"]
