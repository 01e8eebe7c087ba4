"""The Markdown page. To write the golden page anew:

GOLDEN=write python -m pytest tests/reporting/test_markdown.py
"""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.records import Flagged
from robustssm.reporting import markdown, write_report
from robustssm.reporting.base import Code, Document, Section
from tests.reporting.synthetic import ATTACKS, attacked, curve, result, write_run

GOLDEN = Path(__file__).parent / "golden_report.md"


@pytest.fixture
def paths(tmp_path):
    runs = tmp_path / "runs"
    sign = Flagged(name="steps", message="50 steps lower the accuracy of 10 by 5 points.")
    for seed in (0, 1):
        best = result(0.9 + 0.01 * seed, {"pgd-10": 0.6 + 0.01 * seed})
        last = result(0.91, {"pgd-10": 0.5})
        write_run(runs / f"s4_trades_{seed}", seed=seed, best=best, last=last)
    write_run(
        runs / "s4_standard",
        method="standard",
        best=result(0.95, {"pgd-10": 0.02}, warnings=(sign,)),
        last=result(0.95, {"pgd-10": 0.0}),
        splits=(),
    )
    write_run(
        runs / "dss_trades",
        layer="dss",
        best=result(0.9, {"pgd-10": 0.5}),
        last=result(0.9, {"pgd-10": 0.45}),
    )
    write_run(
        runs / "dss_standard",
        layer="dss",
        method="standard",
        best=attacked(
            0.95,
            (0.4, 0.35, 0.35, 0.3),
            label="autoattack_adapted",
            attacks={"pgd_released-10": 0.7, "pgd-10": 0.6},
            deviations=("3 targets instead of 9, as there are 4 classes",),
            curves=(curve("steps", (1, 10, 100), (0.7, 0.6, 0.59)),),
            planned=1000,
        ),
        last=result(0.95, {"pgd-10": 0.0}),
        splits=(),
    )
    (write_run(runs / "killed") / "evaluation.json").unlink()
    return write_report([runs], tmp_path / "out")


def test_the_page_is_the_golden_one(paths):
    text = paths.markdown.read_text()
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_its_figures_lie_beside_it(paths):
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", paths.markdown.read_text())
    lying = {f"figures/{path.name}" for path in (paths.markdown.parent / "figures").iterdir()}
    assert set(named) == lying
    assert len(named) == len(lying) > 0


def test_every_table_line_has_as_many_cells_as_its_heading(paths):
    lines = paths.markdown.read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 10
    width = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line))
            width = width if before.startswith("|") else bars
            assert bars == width


def test_an_invalid_number_is_struck_out(tmp_path):
    sign = Flagged(name="masking", message="no gradient", severity="invalid")
    write_run(tmp_path / "runs" / "a", best=result(0.9, ATTACKS, warnings=(sign,)))
    text = write_report([tmp_path / "runs"], tmp_path / "out").markdown.read_text()
    assert "~~60.0~~ invalid \\[53.1, 66.5\\] (w1)" in text


@given(st.text())
def test_escaped_text_holds_no_live_mark(text):
    escaped = markdown.escape(text)
    assert not set("<>") & set(escaped)
    bare = re.sub(r"\\[\\`*_\[\]|~#$]", "", escaped)
    assert not set("`*_[]|~#$\\") & set(bare)


def test_code_cannot_close_its_fence():
    text = "a\n````\n<script>"
    section = Section(name="s", title="S", blocks=(Code(text=text),))
    page = markdown.page(Document(title="T", sections=(section,)))
    assert page.endswith(f"`````\n{text}\n`````\n")
