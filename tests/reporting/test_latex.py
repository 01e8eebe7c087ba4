"""LaTeX: whole environments, as many cells as columns, and nothing from a file that acts."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.records import Flagged
from robustssm.reporting import latex
from robustssm.reporting.base import Cell, Document, Fold, Row, RowGroup, Section, Table
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting.synthetic import ATTACKS, attacked, result, write_run

HOSTILE = "\\input{/etc/passwd} $x$ %_#&{}~^ \N{SNOWMAN} é [1] − ε \\\\"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    root = tmp_path_factory.mktemp("latex")
    sign = Flagged(name="masking", message="gradients vanish", severity="invalid")
    write_run(root / "runs" / HOSTILE.replace("/", ""), best=result(0.9, {HOSTILE: 0.5} | ATTACKS))
    write_run(root / "runs" / "b", layer="dss")
    write_run(root / "runs" / "c", method="standard", best=attacked(0.9, (0.5, 0.4)))
    write_run(root / "runs" / "d", layer="s5", best=result(0.9, ATTACKS, warnings=(sign,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latex, "_TALL", 3)
        return latex.page(Overview().render(load([root / "runs"])))


def bare(text):
    """Without comments and escaped signs."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    return text.replace("\\\\", "\n").replace(r"\&", "").replace(r"\{", "").replace(r"\}", "")


def test_braces_and_environments_are_balanced(text):
    depth = 0
    for sign in bare(text):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert text.count(r"\begingroup") == text.count(r"\endgroup") >= 3
    assert text.count(r"\caption{") == text.count(r"\label{tab:") == text.count(r"\begingroup")
    assert {"tabular", "longtable"} <= set(re.findall(r"\\begin\{(\w+)\}", text))


def test_every_line_has_as_many_cells_as_its_table_has_columns(text):
    pattern = r"\\begin\{(tabular|longtable)\}\{(.*?)\}\n(.*?)\\end\{\1\}"
    found = re.findall(pattern, text, flags=re.DOTALL)
    assert len(found) == text.count(r"\begingroup")
    for _, spec, body in found:
        width = len(re.findall("[lr]|p", re.sub(r"\{[^{}]*\}", "", spec)))
        lines = [
            line for line in body.splitlines() if line.endswith(r"\\") and "caption" not in line
        ]
        assert len(lines) > 1
        for line in lines:
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            cells = len(re.findall(r"(?<!\\)&", line)) + 1
            assert cells - len(spans) + sum(spans) == width, line


def test_wide_tables_are_split_by_their_outermost_heading():
    columns = tuple((top, f"{at}") for top in ("A", "B") for at in range(8))
    row = Row(head="r", cells=tuple(Cell(value=str(at)) for at in range(16)))
    table = Table(caption="C", corner="c", columns=columns, groups=(RowGroup(rows=(row,)),))
    blocks = (table, Fold(name="f", summary="s", blocks=(table,)))
    text = latex.page(Document(title="T", sections=(Section(name="s", title="", blocks=blocks),)))
    assert re.findall(r"\\caption\{([^}]*)\}", text) == ["A. C", "B. C"]
    assert r"r & 8 & 9 & 10 & 11 & 12 & 13 & 14 & 15 \\" in text


def test_numbers_that_must_not_be_believed_say_so(text):
    assert r"\ssmcell{\textit{60.0} (invalid)\textsuperscript{w1}}{\tiny {[}53.1, 66.5]}" in text
    assert "gradients vanish (masking)" in text
    assert r"\input{/" not in text and "U+2603" in text


@given(st.text())
def test_escaped_text_holds_no_live_sign(text):
    escaped = latex.escape(text)
    plain = re.sub(r"\\[&%$#_{}]", "", escaped)
    assert not set("&%#_^") & set(re.sub(r"\$[^$]*\$", "", plain))
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert set(re.findall(r"\\([a-z]+)", re.sub(r"\$[^$]*\$", "", plain))) <= {
        *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater"),
        *("textbar", "ldots", "texttt"),
    }
    assert "\n" not in escaped


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_takes_it(text, tmp_path):
    (tmp_path / "report.tex").write_text(text)
    main = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}"
    main += r"\usepackage{booktabs,longtable}\begin{document}\input{report}\end{document}"
    (tmp_path / "main.tex").write_text(main)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
