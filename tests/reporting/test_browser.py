"""The page in a real browser: it sorts, filters, fits a phone, and asks for nothing."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from html import unescape

import pytest

from robustssm.reporting import html
from robustssm.reporting.base import (
    MISSING,
    Cell,
    Document,
    Fold,
    Paragraph,
    Row,
    RowGroup,
    Section,
    Table,
)
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting.synthetic import ATTACKS, attacked, curve, result, write_run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome")

VALUES = {  # as tables write numbers, in ascending order; what has none stands last
    "minus": "\N{MINUS SIGN}12.5",
    "power": "2 \N{MULTIPLICATION SIGN} 10⁻⁴",
    "tiny": "< 0.001",
    "share": "7 of 300",
    "nine": "9.0",
    "ten": "+10.0",
    "thousand": "1,234",
    "endless": "\N{INFINITY}",
    "word": "the best",
    "none": "",
}


def _table():
    order = "ten none tiny endless minus word thousand nine power share"
    rows = [
        Row(
            head=name,
            cells=(
                Cell(value=f"{name[::-1]} said"),
                Cell(value=VALUES[name], details=("99999",)) if VALUES[name] else MISSING,
                *[Cell(value=str(at))] * 8,
            ),
        )
        for at, name in enumerate(order.split())
    ]
    more = (Row(head="b", cells=rows[0].cells), Row(head="a", cells=rows[2].cells))
    return Table(
        caption="Numbers",
        corner="Row",
        columns=(
            ("Kind", "word"),
            *[("Left", f"l{at}") for at in range(5)],
            *[("Right", f"r{at}") for at in range(4)],
        ),
        groups=(RowGroup(rows=tuple(rows), title="First"), RowGroup(rows=more, title="Second")),
        words=1,
    )


STEPS = """
document.addEventListener("DOMContentLoaded", () => {
  const found = {}, table = document.querySelector("#numbers table");
  const heads = (body) => [...body.rows].filter((r) => !r.classList.contains("group") && !r.hidden)
    .map((r) => r.cells[0].textContent.trim());
  const both = () => [...table.tBodies].map((body) => (body.hidden ? [] : heads(body)));
  const button = (text) => [...table.querySelectorAll("button.sort")]
    .find((b) => b.textContent.trim() === text);
  found.original = both();
  button("l0").click();
  found.ascending = both();
  found.told = table.querySelectorAll('th[aria-sort="ascending"]').length;
  found.title = [...table.tBodies].map((body) => body.rows[0].textContent.trim());
  button("l0").click();
  found.descending = both();
  button("l0").click();
  found.restored = both();
  found.untold = table.querySelectorAll("th[aria-sort]").length;
  button("word").click();
  found.words = both();
  button("Row").click();
  found.corner = both();
  found.focusable = button("l1").tabIndex;
  const input = document.querySelector("#numbers input[type=search]");
  const filter = (text) => { input.value = text; input.dispatchEvent(new Event("input")); };
  filter("  FIRST nin ");
  found.filtered = both();
  found.status = document.querySelector("#numbers .status").textContent;
  filter("99999");
  found.digits = both();
  filter("");
  found.all = both().flat().length;
  const box = document.querySelectorAll("#numbers .columns input")[1];
  box.click();
  const visible = (line) => [...line.cells].filter((c) => !c.hidden)
    .map((c) => c.textContent.trim());
  found.hidden = visible(table.tHead.rows[1]);
  found.kept = visible(table.tBodies[0].rows[1]).length;
  box.click();
  found.shown = visible(table.tHead.rows[1]).length;
  const theme = document.querySelector("button.theme");
  const colour = () => getComputedStyle(document.body).backgroundColor;
  found.colours = [0, 1, 2, 3].map(() => { const now = colour(); theme.click(); return now; });
  const folds = [...document.querySelectorAll("details")];
  found.controls_in_closed_folds = document.querySelectorAll("details button.sort").length;
  found.overflow = document.documentElement.scrollWidth - window.innerWidth;
  for (const fold of folds) fold.open = true;
  found.overflow_opened = document.documentElement.scrollWidth - window.innerWidth;
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  setTimeout(() => {
    found.controls_in_opened_folds = document.querySelectorAll("details button.sort").length;
    found.points = [...document.querySelectorAll("svg[role=img]")].map((svg) => {
      const box = svg.getBoundingClientRect();
      return box.width > 20 && box.height > 20;
    });
    const out = document.createElement("pre");
    out.id = "outcome";
    out.textContent = JSON.stringify(found);
    document.body.append(out);
  }, 50);
});
"""


def visit(page, folder, *options):
    """What the browser makes of a page: the text of the page then, and what it logs."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-dev-shm-usage"),
            f"--user-data-dir={folder / 'profile'}",
            *("--virtual-time-budget=3000", "--dump-dom"),
            *options,
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    curves = (curve("eps", (0.05, 0.1, 0.2), (0.7, 0.6, 0.5)),)
    for seed in range(2):
        write_run(root / f"s4_{seed}", seed=seed, best=result(0.9, ATTACKS, curves=curves))
        write_run(root / f"dss_{seed}", seed=seed, layer="dss", best=attacked(0.9, (0.5, 0.4)))
        write_run(root / f"standard_{seed}", seed=seed, method="standard")
    return load([root])


@pytest.fixture(scope="module")
def visited(runs, tmp_path_factory):
    """The steps above, on a narrow screen."""
    overview = Overview().render(runs)
    long = Paragraph(text="seed0/" + 60 * "digits.s4_ads_")
    blocks = (_table(), Fold(name="deep", summary="s", blocks=(_table(), long)), long)
    section = Section(name="numbers", title="Numbers", blocks=blocks)
    page = html.page(Document(title=overview.title, sections=(section, *overview.sections)))
    digest = base64.b64encode(hashlib.sha256(STEPS.encode()).digest()).decode()
    page = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    page = page.replace("</head>", f"<script>{STEPS}</script></head>", 1)
    folder = tmp_path_factory.mktemp("browser")
    # A window is never narrower than 500 pixels; the page in a frame of a phone's width is.
    (folder / "inner.html").write_text(page, encoding="utf-8")
    frame = (
        "<!DOCTYPE html><iframe id=f width=390 height=800 style='border:0' src=inner.html></iframe>"
        "<pre id=outcome></pre><script>setTimeout(() => { document.getElementById('outcome')"
        ".textContent = document.getElementById('f').contentDocument.getElementById('outcome')"
        ".textContent; }, 1500)</script>"
    )
    text, log = visit(frame, folder, "--allow-file-access-from-files")
    (outcome,) = re.findall(r'<pre id="outcome">(.*?)</pre>', text, flags=re.DOTALL)
    return json.loads(unescape(outcome)), log


def test_a_click_sorts_by_number_within_groups_and_a_third_restores(visited):
    found, _ = visited
    ordered = list(VALUES)
    missing = ["none", "word"]  # in the order of the report
    assert found["ascending"] == [[*ordered[:-2], *missing], ["a", "b"]]
    assert found["descending"] == [[*ordered[-3::-1], *missing], ["b", "a"]]
    assert found["restored"] == found["original"] != found["ascending"]
    assert (found["told"], found["untold"]) == (1, 0)
    assert found["title"] == ["First", "Second"]


def test_columns_of_words_sort_as_words(visited):
    found, _ = visited
    assert found["words"][0] == sorted(VALUES, key=lambda name: name[::-1])
    assert found["corner"] == [sorted(VALUES), ["a", "b"]]


def test_every_word_of_a_filter_must_occur_and_numbers_do_not_count(visited):
    found, _ = visited
    assert found["filtered"] == [["nine"], []]
    assert found["status"] == "1 of 12 rows with: first nin"
    assert found["digits"] == [[], []]
    assert found["all"] == 12


def test_groups_of_columns_can_be_hidden(visited):
    found, _ = visited
    assert found["hidden"] == ["word", "r0", "r1", "r2", "r3"]
    assert found["kept"] == 1 + 1 + 4
    assert found["shown"] == 10


def test_the_button_changes_the_colours_and_comes_back(visited):
    colours = visited[0]["colours"]
    assert colours[0] in colours[1:3] and colours[1] == "rgb(255, 255, 255)"
    assert colours[2] == "rgb(22, 23, 26)" and colours[3] == colours[0]


def test_detail_is_equipped_when_it_is_opened(visited):
    found, _ = visited
    assert found["controls_in_closed_folds"] == 0
    assert found["controls_in_opened_folds"] > 10
    assert found["focusable"] == 0


def test_nothing_overflows_a_phone(visited):
    found, _ = visited
    assert found["overflow"] <= 0 and found["overflow_opened"] <= 0
    assert len(found["points"]) > 5 and all(found["points"])


def test_nothing_is_loaded_and_the_console_is_silent(visited):
    found, log = visited
    assert found["loaded"] == []
    assert log == []


class Session:
    """A browser steered through its debugging pipe, for what a script in a page cannot do."""

    def __init__(self, folder, *, width, height):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = (
            f"exec {BROWSER} --headless --no-sandbox --disable-gpu --remote-debugging-pipe "
            f"--window-size={width},{height} --user-data-dir={folder / 'steered'} "
            f"about:blank 3<&{theirs_in} 4>&{theirs_out}"
        )
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.into = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb")
        self.number, self.session = 0, None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def __call__(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.out.write(json.dumps(message).encode() + b"\0")
        while True:
            text = b""
            while (sign := self.into.read(1)) != b"\0":
                assert sign, "the browser closed its pipe"
                text += sign
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, file):
        self("Page.navigate", url=file.as_uri())
        for _ in range(200):
            if self.value("location.href !== 'about:blank' && document.readyState") == "complete":
                return
            time.sleep(0.02)
        raise AssertionError("the page did not load")

    def value(self, expression):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def press(self, key, text):
        code = {"Enter": 13, " ": 32}[key]
        known = {"key": key, "windowsVirtualKeyCode": code, "code": "Space" if key == " " else key}
        self("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        self("Input.dispatchKeyEvent", type="keyUp", **known)

    def close(self):
        self("Browser.close")
        self.process.wait(timeout=20)
        self.out.close()
        self.into.close()


@pytest.fixture
def session(tmp_path):
    made = Session(tmp_path, width=390, height=800)
    yield made
    made.close()


def test_keys_links_and_paper(session, tmp_path):
    deep = Fold(name="deep", summary="s", blocks=(_table(),))
    outer = Fold(name="outer", summary="s", blocks=(deep,))
    closed = Fold(name="closed", summary="s", blocks=(_table(),))
    section = Section(name="s", title="S", blocks=(_table(), outer, closed))
    file = tmp_path / "page.html"
    file.write_text(html.page(Document(title="T", sections=(section,))), encoding="utf-8")
    session.open(file)

    sort = "document.querySelectorAll('button.sort')[2]"
    told = f"{sort}.closest('th').getAttribute('aria-sort')"
    session.value(f"{sort}.focus()")
    session.press("Enter", "\r")
    assert session.value(told) == "ascending"
    session.press(" ", " ")
    assert session.value(told) == "descending"
    assert session.value(f"document.activeElement === {sort}") is True

    session.value("location.hash = '#deep'")
    time.sleep(0.1)
    opened = "[...document.querySelectorAll('details')].map((fold) => fold.open)"
    assert session.value(opened) == [True, True, False]

    session("Emulation.setEmulatedMedia", media="print")
    session.value("document.querySelector('button.theme').click()")
    session.value("document.querySelector('button.theme').click()")
    shown = "getComputedStyle(document.querySelector('{}')).{}"
    assert session.value("document.documentElement.dataset.theme") == "dark"
    assert session.value(shown.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    assert session.value(shown.format("body", "color")) == "rgb(0, 0, 0)"
    assert session.value(shown.format("thead", "display")) == "table-header-group"
    for gone in ("button.theme", ".controls label", "#closed"):
        assert session.value(shown.format(gone, "display")) == "none"
    assert session.value(shown.format("#deep", "display")) == "block"
    assert session.value(told) == "descending"  # paper has the order of the screen


def test_a_repeated_caption_reads_as_the_first(session, tmp_path):
    caption = '95% of "all" \\ y\' - y, ||H|| > 0 & so on \N{EN DASH} ' + 60 * "x"
    tables = [dataclasses.replace(_table(), caption=caption, corner=c) for c in "abc"]
    fold = Fold(name="f", summary="s", blocks=tuple(tables))
    section = Section(name="s", title="S", blocks=(fold,))
    file = tmp_path / "page.html"
    file.write_text(html.page(Document(title="T", sections=(section,))), encoding="utf-8")
    session.open(file)
    assert session.value("document.querySelector('caption').textContent.trim()") == caption
    read = "getComputedStyle(document.querySelectorAll('caption span')[1], '::before').content"
    assert json.loads(session.value(read)) == caption


def test_a_foreign_script_is_refused(tmp_path):
    page = html.page(Document(title="T", sections=()))
    page = page.replace("</body>", "<script>document.title = 'foreign'</script></body>")
    text, log = visit(page, tmp_path)
    assert "<title>T</title>" in text
    assert any("Content Security Policy" in line for line in log)
