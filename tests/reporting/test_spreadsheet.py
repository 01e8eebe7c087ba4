"""CSV: exact numbers, one line each, and texts that no spreadsheet runs."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.records import Flagged, wilson
from robustssm.reporting import spreadsheet, write_report
from robustssm.reporting.base import MISSING, Cell, Document, Row, RowGroup, Section, Table
from tests.reporting.synthetic import ATTACKS, result, write_run

FORMULA = "=HYPERLINK(1)"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("csv")
    sign = Flagged(name="masking", message="m", severity="invalid")
    best = result(0.905, {"pgd-10": 1 / 3, "square": 0.6}, n=300, warnings=(sign,))
    write_run(root / "runs" / FORMULA, best=best, seed=3)
    write_run(root / "runs" / "b", best=result(0.9, {}), layer="dss")
    write_run(root / "runs" / "c", best=result(0.9, ATTACKS), layer="s5")
    return write_report([root / "runs"], root / "out")


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_are_exact_and_complete(paths):
    found = lines(paths.results)
    assert tuple(found[0]) == spreadsheet.COLUMNS
    own = [each for each in found if each["run"] == f"'{FORMULA}" and each["checkpoint"] == "best"]
    assert [each["metric"] for each in own] == ["clean", "pgd-10", "square", "worst case"]
    (attacked,) = [each for each in own if each["metric"] == "pgd-10"]
    assert float(attacked["value"]) == 100 / 300
    assert (float(attacked["low"]), float(attacked["high"])) == wilson(100, 300)
    assert (attacked["correct"], attacked["n"], attacked["seed"]) == ("100", "300", "3")
    assert (attacked["verdict"], attacked["warnings"]) == ("unreliable", "masking")
    assert attacked["command"] == "robustssm run digits.s4_trades --set seed=3"
    assert (attacked["commit"], attacked["epoch"]) == ("0123456789abcdef", "3")
    keys = [(e["run"], e["checkpoint"], e["metric"]) for e in found]
    assert len(keys) == len(set(keys)) == 2 * 4 + (1 + 4) + 2 * 4


def test_every_table_outside_folds_is_a_file(paths):
    names = sorted(path.name for path in paths.tables.iterdir())
    assert {"accuracy-1.csv", "runs-1.csv"} <= set(names)
    for path in paths.tables.iterdir():
        with path.open(newline="") as file:
            assert len({len(line) for line in csv.reader(file)}) == 1


def test_small_print_and_notes_have_columns_of_their_own():
    row = Row(
        head="-1+cmd",
        cells=(
            Cell(value="\N{MINUS SIGN}1,234.5", details=("[0, 1]", "n = 2")),
            Cell(value="6.0", marks=("w1",), state="invalid"),
            MISSING,
        ),
    )
    groups = (RowGroup(rows=(row,), title="@G"),)
    table = Table(
        caption="", corner="c", columns=(("A", "x"), ("A", "y"), ("B", "x")), groups=groups
    )
    document = Document(title="", sections=(Section(name="s", title="", blocks=(table,)),))
    (text,) = spreadsheet.tables(document).values()
    assert list(csv.reader(io.StringIO(text))) == [
        ["Group", "c", "A / x", "A / x (details)", "A / y", "A / y (notes)", "B / x"],
        ["'@G", "'-1+cmd", "-1234.5", "[0, 1], n = 2", "6.0", "invalid w1", ""],
    ]


@given(st.text())
def test_no_text_opens_like_a_formula(text):
    safe = spreadsheet.safe(text)
    assert safe in (text, f"'{text}")
    if safe == text and text[:1] in ("=", "+", "-", "@"):
        float(text)


@pytest.mark.parametrize("number", ["-1.5", "+2", "-.5e-7", "3"])
def test_numbers_stay(number):
    assert spreadsheet.safe(number) == number
