"""The layout of the main table: what stands where, and what is missing."""

import pytest

from robustssm.records import Flagged
from robustssm.reporting import cells, tables
from robustssm.reporting.base import MISSING
from robustssm.reporting.load import load
from tests.reporting.synthetic import ATTACKS, result, write_run


def headline(path, marks=None):
    groups = cells.groups(load([path]).finished)
    return tables.headline(groups, marks=marks or {}, level=0.95)


def entries(table, group=0):
    """Row head to {column path: cell}."""
    return {
        row.head: dict(zip(table.columns, row.cells, strict=True))
        for row in table.groups[group].rows
    }


def test_rows_and_columns_stand_as_in_the_paper(tmp_path):
    relu = {"form": "scale", "activation": "relu"}
    for number, (layer, scaling) in enumerate(
        [("mamba", None), ("s4", relu), ("dss", None), ("s4", None), ("gla", None)]
    ):
        write_run(tmp_path / f"{number}", layer=layer, scaling=scaling)
    for method in ("pgd_training", "standard", "mart"):
        write_run(tmp_path / method, method=method)
    table = headline(tmp_path)
    assert [row.head for row in table.groups[0].rows] == [
        "S4", "S4 + AdS-ReLU", "DSS", "Mamba", "gla",
    ]  # fmt: skip
    methods = list(dict.fromkeys(column[0] for column in table.columns))
    assert methods == ["Standard", "PGD-AT", "TRADES", "MART"]
    own = [column for column in table.columns if column[0] == "PGD-AT"]
    assert own[-1] == ("PGD-AT", "Evaluation", "Verdict")
    assert tuple(own[:6]) == tuple(
        ("PGD-AT", metric, statistic)
        for metric in ("Clean", "PGD-10")
        for statistic in ("Best", "Last", "Diff")
    )
    assert [group.title for group in table.groups] == [
        "digits: ℓ∞, ε = 0.1, inputs in [0, 1]; n = 200"
    ]


def test_values_are_percentages_and_their_difference(tmp_path):
    best, last = result(0.9, {"pgd-10": 0.6}), result(0.88, {"pgd-10": 0.45})
    write_run(tmp_path / "a", best=best, last=last)
    row = entries(headline(tmp_path))["S4"]
    assert [cell.value for cell in row.values()] == [
        "90.0",
        "88.0",
        "+2.0",
        "60.0",
        "45.0",
        "+15.0",
        "reliable",
    ]


def test_a_cell_without_a_run_is_missing(tmp_path):
    write_run(tmp_path / "a", layer="s4", method="trades")
    write_run(tmp_path / "b", layer="dss", method="standard")
    rows = entries(headline(tmp_path))
    assert {cell for path, cell in rows["S4"].items() if path[0] == "Standard"} == {MISSING}
    assert MISSING not in [cell for path, cell in rows["S4"].items() if path[0] == "TRADES"]


def test_the_worst_case_is_over_all_attacks_of_the_data_set(tmp_path):
    write_run(tmp_path / "a", layer="s4")
    write_run(tmp_path / "b", layer="dss", best=result(0.9, {"pgd-10": 0.6}))
    rows = entries(headline(tmp_path))
    assert rows["S4"]["TRADES", "Worst case", "Best"].value == "55.0"
    assert rows["DSS"]["TRADES", "Worst case", "Best"] == MISSING
    assert rows["DSS"]["TRADES", "PGD-50x5", "Best"] == MISSING
    assert rows["DSS"]["TRADES", "PGD-10", "Best"].value == "60.0"


def test_attacks_of_one_name_with_other_settings_are_named_below(tmp_path):
    pgd = {"name": "pgd", "steps": 10, "step_size": 0.25}
    for number, (layer, size) in enumerate([("s4", 0.25), ("dss", 0.25), ("s5", 0.1)]):
        found = result(0.9, {"pgd-10": 0.6}, settings={"pgd-10": pgd | {"step_size": size}})
        write_run(tmp_path / str(number), layer=layer, best=found, last=found)
    assert headline(tmp_path).notes == (
        "PGD-10 on digits was another for S5, TRADES: step_size 0.1, not 0.25.",
    )


def test_tiers_of_recipes_stand_one_after_another(tmp_path):
    write_run(tmp_path / "a", recipe="digits.s4_trades")
    write_run(tmp_path / "b", recipe="digits.dss_trades", layer="dss")
    other = result(0.9, {"pgd-10": 0.6, "autoattack_standard": 0.5})
    write_run(tmp_path / "c", recipe="digits_paper.s4_trades", best=other, last=other)
    table = headline(tmp_path)
    titles = [group.title.partition("; ")[2] for group in table.groups]
    assert titles == ["n = 200; recipes digits", "n = 200; recipes digits_paper"]
    assert [[row.head for row in group.rows] for group in table.groups] == [["S4", "DSS"], ["S4"]]
    at = table.columns.index(("TRADES", "Worst case", "Best"))
    assert [row.cells[at].value for group in table.groups for row in group.rows] == [
        "55.0",
        "55.0",
        "50.0",
    ]


@pytest.mark.parametrize(
    "severity, state", [("", "value"), ("warning", "suspicious"), ("invalid", "invalid")]
)
def test_warnings_mark_the_attacked_columns_of_their_checkpoint(tmp_path, severity, state):
    write_run(tmp_path / "a")
    row = entries(headline(tmp_path, {("a", "best"): {"w1": severity}}))["S4"]
    for (_, metric, statistic), cell in row.items():
        concerned = metric not in ("Clean", "Evaluation") and statistic != "Last"
        assert cell.marks == (("w1",) if concerned else ())
        assert cell.state == (state if concerned else "value")


def test_a_part_of_the_test_set_is_said(tmp_path):
    write_run(tmp_path / "a")
    runs = load([tmp_path]).finished
    assert tables.sizes(runs) == "200"
    write_run(tmp_path / "b", best=result(0.9, ATTACKS, n=50), last=result(0.9, ATTACKS, n=50))
    assert tables.sizes(load([tmp_path]).finished) == "50 or 200"


def test_one_run_shows_counts(tmp_path):
    write_run(tmp_path / "a")
    (run,) = load([tmp_path]).finished
    table = tables.of_run(run, marks={}, level=0.95)
    heads = [row.head for row in table.groups[0].rows]
    assert heads == ["Clean", "PGD-10", "PGD-50x5", "Worst case"]
    assert table.groups[0].rows[1].cells[0].details == ("[53.1, 66.5]", "120 of 200")


def test_the_difference_of_one_run_has_its_probability(tmp_path):
    write_run(tmp_path / "a")  # 120 against 110 of 200, all ten on one side: 2 / 2^10
    (run,) = load([tmp_path]).finished
    row = tables.of_run(run, marks={}, level=0.95).groups[0].rows[1]
    assert row.cells[2].details[-1] == "p = 0.002"
    assert "p = " not in str(headline(tmp_path))


def test_a_verdict_stands_beside_each_run(tmp_path):
    grave = Flagged(name="masking", message="no gradient", severity="invalid")
    mild = Flagged(name="steps", message="more steps find less")
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", best=result(0.9, ATTACKS, warnings=(mild,), planned=1000))
    write_run(
        tmp_path / "c",
        best=result(0.9, ATTACKS, warnings=(mild, grave)),
        last=result(0.9, ATTACKS, warnings=(grave,)),
    )
    runs = load([tmp_path]).finished
    targets = {run.name: run.name for run in runs}
    table = tables.index(runs, targets, marks={}, level=0.95)
    at = table.columns.index(("Verdict",))
    found = [(row.cells[at].value, row.cells[at].details) for row in table.groups[0].rows]
    assert found == [
        ("reliable", ()),
        ("suspicious", ("best", "partial")),
        ("unreliable", ()),
    ]
    assert at < table.words
