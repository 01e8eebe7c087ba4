"""The page: well-formed, alone, escaped, complete."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from robustssm.core.config import from_dict, names, to_dict
from robustssm.records import Flagged
from robustssm.reporting import html, write_report
from robustssm.reporting.base import (
    MISSING,
    Document,
    Fold,
    Judgements,
    Notes,
    RowGroup,
    Section,
    Table,
)
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting.synthetic import ATTACKS, attacked, curve, result, write_run

VOID = {"meta", "link", "br", "hr", "img", "input"}
CLOSED = {  # what an opening tag may close, by the standard: optional end tags of tables
    "td": {"td", "th"},
    "th": {"td", "th"},
    "tr": {"td", "th", "tr"},
    "tbody": {"td", "th", "tr", "tbody"},
    "/thead": {"td", "th", "tr"},
    "/table": {"td", "th", "tr", "tbody"},
}
HOSTILE = "<script>alert('x')</script>\"&'`|*_[a](http://evil.example)\u202e\x00 $x$"


class Page(HTMLParser):
    """Checks nesting as it reads; collects names, references, tags and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.tags, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self._close(tag)
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        for key, value in attrs:
            if key in ("href", "xlink:href", "src", "srcset", "action", "data"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def _close(self, tag):
        while self.open and self.open[-1] in CLOSED.get(tag, ()):
            self.open.pop()

    def handle_endtag(self, tag):
        self._close(f"/{tag}")
        assert self.open.pop() == tag, f"</{tag}> closes what is open"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    sign = Flagged(name="masking", message="gradients vanish", severity="invalid")
    relu = {"form": "scale", "activation": "relu"}
    write_run(root / "a", best=result(0.905, {"pgd-10": 0.615, "square": 0.6}))
    write_run(root / "b", method="standard", best=result(0.99, ATTACKS, warnings=(sign,)))
    write_run(root / "c", scaling=relu, best=result(0.925, ATTACKS))
    write_run(root / "d", best=result(0.905, {"pgd-10": 0.635, "square": 0.6}), seed=1)
    (write_run(root / "half") / "evaluation.json").unlink()
    (write_run(root / "broken") / "recipe.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def text(runs):
    return html.page(Overview().render(load([runs])))


def test_the_page_is_well_formed_and_its_names_are_unique(text):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {tag for tag, _ in page.tags} >= {"svg", "table", "details", "nav", "h1"}


def test_the_page_needs_nothing_but_itself(text):
    page = Page(text)
    assert page.references, "the page has references to look at"
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # its own, inline
    assert "http:" not in text and "https:" not in text and "@import" not in text


def test_every_number_of_every_run_is_there(text):
    words = " ".join(Page(text).text)
    for number in ("90.5", "61.5", "63.5", "99.0", "92.5", "60.0", "55.0", "[53.1, 66.5]"):
        assert number in words
    for fact in ("robustssm run digits.s4_trades --set seed=1", "0123456789abcdef", "torch 2.11.0"):
        assert fact in words
    assert "62.5" in words and "sd 1.4" in words and "2 seeds" in words  # the mean of two seeds


def test_what_is_left_out_is_listed_with_its_reason(text):
    words = " ".join(Page(text).text)
    assert "Unfinished and damaged runs" in words
    assert "evaluation.json is missing; training reached epoch 4 of 4" in words
    assert "recipe.json must be a JSON file" in words


def test_warnings_stand_above_the_numbers_they_concern(text):
    assert text.index('id="note-w1"') < text.index('href="#note-w1"')
    assert text.index("gradients vanish") < text.index("<table")
    assert re.search(r'<td class="invalid[^>]*><span class="number">60.0</span>', text)


@pytest.mark.parametrize("count", [4, 5])
def test_many_warnings_stand_below_the_table_and_the_verdict_above(tmp_path, count):
    signs = tuple(Flagged(name=f"s{n}", message=f"Reason {n}.") for n in range(count))
    write_run(tmp_path / "a", best=result(0.9, ATTACKS, warnings=signs))
    document = Overview().render(load([tmp_path]))
    (section,) = (section for section in document.sections if section.name == "accuracy")
    kinds = [
        type(block) for block in section.blocks if isinstance(block, Judgements | Notes | Table)
    ]
    assert kinds == [Judgements, *([Notes, Table] if count == 4 else [Table, Notes])]


def test_the_policy_lets_the_own_script_run_and_no_other(text):
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]


def test_a_caption_that_runs_share_is_written_once_in_folds():
    caption = 'What it is: "quoted" \\ </style> ' + 60 * "x"
    one = Table(caption=caption, corner="c", columns=(("a",),), groups=(RowGroup(rows=()),))
    other = dataclasses.replace(one, columns=(("b",),))
    folds = tuple(
        Fold(name=f"f{at}", summary="s", blocks=(one, other, one, one)) for at in range(2)
    )
    section = Section(name="s", title="S", blocks=(*folds, one))
    text = html.page(Document(title="T", sections=(section,)))
    assert text.count(60 * "x") == 3  # in the style, first, and in full outside of folds
    assert text.count("<span class=c1></span>") == 7
    (rule,) = re.findall(r'^\.c1::before\{content:"(.*)"\}$', text, flags=re.MULTILINE)
    assert re.sub(r"\\([0-9a-f]+) ", lambda sign: chr(int(sign[1], 16)), rule) == caption
    assert not set('"<>') & set(rule)


def test_tables_of_the_same_columns_are_joined_in_folds():
    tables = [
        Table(caption=c, corner="c", columns=((h,),), groups=(RowGroup(rows=()),))
        for c, h in (("A", "x"), ("B", "x"), ("C", "x"), ("D", "y"), ("E", "x"))
    ]
    made = html.joined(tables)
    assert [(t.caption, [g.title for g in t.groups]) for t in made] == [
        ("", ["A", "B", "C"]),
        ("D", [""]),
        ("E", [""]),
    ]
    noted = dataclasses.replace(tables[1], notes=("n",))
    assert html.joined([tables[0], noted]) == [tables[0], noted]


def test_a_warning_on_both_checkpoints_is_said_once(tmp_path):
    sign = Flagged(name="masking", message="gradients vanish")
    same = result(0.9, ATTACKS, warnings=(sign,))
    write_run(tmp_path / "a", best=same, last=same)
    section = Overview().render(load([tmp_path])).sections[1]
    _, notes, table, *_ = section.blocks
    assert [note.text for note in notes.notes] == [
        "digits, S4, TRADES, best and last of a: gradients vanish (masking)"
    ]
    marked = [cell.marks for cell in table.groups[0].rows[0].cells]
    assert marked == [()] * 3 + [("w1",)] * 9 + [()]  # clean, two attacks, worst case; verdict


def test_colours_follow_the_reader(text):
    assert "color-scheme: light dark" in text and "--clean: light-dark(#0072b2, #56b4e9)" in text
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    (rules,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert re.search(r"^\.s\d+\{.*var\(--clean\)", rules, flags=re.MULTILINE)
    assert "style=" in text and not re.findall(r"(?:fill|stroke):\s*#", rules + drawings)


def test_texts_from_files_are_escaped_everywhere(tmp_path):
    sign = Flagged(name=HOSTILE, message=HOSTILE)
    best = attacked(
        0.9,
        (0.5, 0.4),
        label=HOSTILE,
        attacks={"pgd_released-10": 0.6, "pgd-10": 0.5},
        deviations=(HOSTILE,),
        curves=(
            curve("eps", (0.1, 0.2), (0.5, 0.4), attack=HOSTILE),
            curve(HOSTILE, (1, 2), (0.5, 0.4), attack=HOSTILE),
        ),
        warnings=(sign,),
        threat={"norm": HOSTILE, "window": {HOSTILE: HOSTILE}, HOSTILE: HOSTILE},
    )
    write_run(
        tmp_path / "runs" / "<img src=x onerror=alert(1)>",
        recipe=HOSTILE,
        layer=HOSTILE,
        method=HOSTILE,
        dataset=HOSTILE,
        best=best,
        last=result(0.9, {HOSTILE: 0.4}),
        provenance={"command": HOSTILE, "packages": {HOSTILE: HOSTILE}, HOSTILE: [HOSTILE]},
        extra=HOSTILE,
    )
    write_run(tmp_path / "runs" / "dss", layer="dss", best=best)  # so that figures compare
    (
        write_run(tmp_path / "runs" / HOSTILE.replace("/", "").replace("\x00", "")) / "recipe.json"
    ).unlink()
    paths = write_report([tmp_path / "runs"], tmp_path / "out")
    page = Page(paths.html.read_text())
    assert "img" not in {tag for tag, _ in page.tags}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert not [ref for ref in page.references if not ref.startswith("#")]
    assert "<script>alert('x')</script>" in " ".join(page.text)  # as text
    fenced = re.compile(r"^(`{3,})$.*?^\1$", flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in fenced.sub("", paths.markdown.read_text())
    assert not {"\u202e", "\x00"} & set(paths.html.read_text() + paths.markdown.read_text())


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    one = write_report([runs], tmp_path / "one")
    two = write_report([runs], tmp_path / "two")
    files = sorted(path.relative_to(one.html.parent) for path in one.html.parent.rglob("*.*"))
    assert len(files) > 5
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert one.markdown.name == "report.md" and two.html.name == "report.html"


def test_headings_span_what_they_head():
    columns = (("A", "x"), ("A", "y"), ("B", "x"))
    table = Table(caption="", corner="", columns=columns, groups=(RowGroup(rows=()),))
    assert html.headings(table) == [
        [("A", 2, "outer"), ("B", 1, "outer")],
        [("x", 1, "outer"), ("y", 1, ""), ("x", 1, "outer")],
    ]


def test_an_empty_document_is_a_page():
    assert Page(html.page(Document(title="<b>", sections=()))).text.count("<b>") == 2
    assert MISSING.state == "missing"


def test_the_overview_is_registered_and_round_trips():
    assert "overview" in names("report")
    report = Overview(level=0.9, title="T")
    assert from_dict(Overview, to_dict(report)) == report
    with pytest.raises(ValueError, match=r"Overview\(level"):
        Overview(level=1.0)
