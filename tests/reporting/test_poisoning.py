"""What the page says of poisoning: headlines with their controls, and where there is no effect."""

import re

import pytest

from robustssm.records import write_json
from robustssm.reporting import html, markdown, poison_names, poison_notes, write_report
from robustssm.reporting import poison_tables as tables
from robustssm.reporting.base import Figure, Fold
from robustssm.reporting.poisoning import Poisoning
from robustssm.reporting.runs import LeftOut, Runs, Study
from tests.reporting import poisoned
from tests.reporting.poisoned import contrast, study, sweep
from tests.reporting.synthetic import write_run
from tests.reporting.test_html import HOSTILE, Page

CONTRASTS = (
    contrast("special", "ordinary", "stop", 100.0, 80.0, 120.0),
    contrast("special", "ordinary", "0.01", 5.0, 4.0, 6.0),
    contrast("special", "ordinary", "1e-05", None, None, None),
    contrast("placebo", "ordinary", "stop", 1.1, 0.9, 1.3),
)
UNTIED = contrast("special_untied", "ordinary_untied", "stop", 0.9, 0.5, 1.4)


def runs(*results):
    return Runs(finished=(), studies=tuple(Study(name=f"{i}.json", result=r) for i, r in results))


@pytest.fixture(scope="module")
def document():
    theory = study("theory", length=7, contrasts=(CONTRASTS[0], UNTIED))
    results = (study(contrasts=CONTRASTS), theory, sweep(), poisoned.brewing())
    return Poisoning().render(runs(*enumerate(results)))


def texts(result):
    return " ".join(note.text for note in poison_notes.of(result, 1)[0])


def test_the_page_is_whole_and_its_names_are_unique(document):
    page = Page(html.page(document))
    assert len(page.ids) == len(set(page.ids))
    assert {r[1:] for r in page.references} <= set(page.ids)
    assert not {"link", "img"} & {tag for tag, _ in page.tags}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # ours


def test_the_same_results_give_the_same_bytes(document):
    again = Poisoning().render(
        runs(
            (0, study(contrasts=CONTRASTS)),
            (1, study("theory", length=7, contrasts=(CONTRASTS[0], UNTIED))),
            (2, sweep()),
            (3, poisoned.brewing()),
        )
    )
    assert html.page(again) == html.page(document)
    assert markdown.drawings(again) == markdown.drawings(document)


def test_the_headline_stands_beside_the_ratios_at_equal_loss():
    text = texts(study(contrasts=CONTRASTS))
    assert "100×, where each arm stopped" in text
    assert "equal training loss it is 5.00× at train MSE 0.01 (5 and 5 runs got there)." in text
    table = tables.contrasts(study(contrasts=CONTRASTS))
    assert [column[0] for column in table.columns] == [
        "where each stopped",
        "train MSE 0.01",
        "train MSE 1e-05",
    ]
    unreached = table.groups[0].rows[0].cells[2]
    assert unreached.state == "missing"
    assert unreached.details == ("0 and 5 runs got there",)


def test_a_headline_without_a_matched_comparison_is_said_to_be_one():
    assert "no comparison at equal training loss is on record" in texts(
        study("dynamics", contrasts=CONTRASTS[:1])
    )
    # flow is followed to one loss, so that there the arms are matched already
    assert "equal training loss" not in texts(study("theory", contrasts=CONTRASTS[:1]))


@pytest.mark.parametrize(
    "ratio, low, high, words",
    [
        (0.9, 0.5, 1.4, "The effect vanishes with plain random start"),
        (40.0, 0.1, 900.0, "do not tell the effect from none"),
        (40.0, 20.0, 90.0, "The effect remains with plain random start"),
    ],
)
def test_the_page_says_whether_the_effect_survives_a_plain_start(ratio, low, high, words):
    made = contrast("special_untied", "ordinary_untied", "stop", ratio, low, high)
    notes, marks = poison_notes.of(study("theory", contrasts=(made,)), 1)
    assert any(words in note.text for note in notes)
    label = next(note.label for note in notes if words in note.text)
    assert marks["special_untied"] == marks["ordinary_untied"] == (label,)


@pytest.mark.parametrize(
    "ratio, low, high, words",
    [
        (1.2, 0.9, 1.4, None),
        (5.0, 0.1, 90.0, "do not tell from none"),
        (5.0, 2.0, 9.0, "an effect of more data alone"),
    ],
)
def test_a_placebo_that_does_something_is_named(ratio, low, high, words):
    made = contrast("placebo", "ordinary", "stop", ratio, low, high)
    text = texts(study(contrasts=(made,)))
    assert (words in text) if words else ("More ordinary" not in text)


def test_runs_that_did_not_converge_and_students_that_explode_are_marked():
    made = [
        poisoned.run("ordinary", 0, 0.1),
        poisoned.run("ordinary", 1, 0.2, converged=False),
        poisoned.run("special", 0, float("inf"), max_modulus=1.2, response=()),
    ]
    result = study(runs=tuple(made))
    text = texts(result)
    assert "ordinary 1 of 2 did" in text
    assert "up to 1.200" in text
    assert "1 seed per condition: intervals are coarse" in text
    ordinary, special = tables.conditions(result, {}).groups[0].rows
    assert [c.value for c in ordinary.cells[:2]] == ["2", "50%"]
    assert ordinary.cells[1].state == "suspicious"
    assert "converged runs 0.100" in ordinary.cells[4].details
    assert special.cells[4].value == "∞"
    assert special.cells[-1].state == "suspicious"
    page = html.page(Poisoning().render(runs((0, result))))
    Page(page)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_errors_are_medians_over_the_horizons_that_matter():
    table = tables.conditions(study(length=7), {})
    heads = [column[-1] for column in table.columns]
    assert heads[4:7] == ["40 lags", "14 lags", "mean"], "the headline first, then twice the length"
    cells = table.groups[0].rows[0].cells
    assert (cells[4].value, cells[5].value) == ("0.120", "0.0600")


PUBLISHED = {
    "d_state": 10,
    "start": {"a_scale": 1e-3, "weight_scale": 1e-3, "gap_rate": 5.0, "warm": 0.1},
    "base_step": 0.01,
    "ordinary_count": 8,
    "extra_count": 10,
}


@pytest.mark.parametrize(
    "change, shown", [({}, True), ({"d_state": 12}, False), ({"base_step": 0.1}, False)]
)
def test_published_numbers_stand_only_beside_their_own_setting(change, shown):
    result = study(settings=PUBLISHED | change)
    table = tables.conditions(result, {})
    assert (("Generalisation error", "published") in table.columns) == shown
    if shown:
        at = table.columns.index(("Generalisation error", "published"))
        assert [row.cells[at].value for row in table.groups[0].rows] == ["0.194", "16.6"]


def test_a_sweep_says_where_the_effect_vanishes():
    text = poison_notes.sweep_note(sweep())
    assert "largest at 1e-08 (40.0×)" in text
    assert "vanishes, with a ratio of at most 1.5, at: as drawn (0.900×)" in text
    everywhere = poison_notes.sweep_note(sweep(rows=((1.0, "1", 9.0), (2.0, "2", 8.0))))
    assert "vanishes" not in everywhere
    assert poison_notes.sweep_note(study()) == ""


def test_figures_are_there_for_what_is_on_record(document):
    blocks = [b for section in document.sections for b in section.blocks]
    found = {b.name: b for b in blocks if isinstance(b, Figure)}
    for number in (1, 2):
        for kind in ("errors", "paths", "responses", "matched"):
            assert f"poison-{kind}-{number}" in found
    assert all("<svg" in panel for figure in found.values() for panel in figure.panels)
    assert any(isinstance(b, Fold) for b in blocks)
    bare = study(
        runs=(
            poisoned.run("ordinary", 0, 0.1, matched=False, path=None, response=()),
            poisoned.run("special", 0, 0.2, matched=False, path=None, response=()),
        )
    )
    sections = Poisoning().render(runs((0, bare))).sections
    names = {b.name for s in sections for b in s.blocks if isinstance(b, Figure)}
    assert names == {"poison-errors-1"}


def test_texts_of_others_are_escaped(tmp_path):
    arms = (("ordinary", 0.1), (HOSTILE, 1.0), ("special", 2.0))
    odd = study("<b>", arms=arms, settings={"note": HOSTILE})
    left = LeftOut(name=HOSTILE, state="damaged", reason=HOSTILE)
    made = Runs(finished=(), studies=(Study(name=HOSTILE, result=odd),), damaged=(left,))
    page = Page(html.page(Poisoning().render(made)))
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # ours
    assert "b" not in {tag for tag, _ in page.tags} or "<b>" in "".join(page.text)


def test_runs_and_poison_stand_in_one_report(tmp_path):
    write_run(tmp_path / "runs" / "a")
    for name, result in (("theory", study("theory")), ("brewing", poisoned.brewing())):
        write_json(tmp_path / "poison" / f"{name}.json", result.to_dict())
    (tmp_path / "poison" / "network.json").write_text("{")
    paths = write_report([tmp_path], tmp_path / "out")
    page = Page(paths.html.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {"accuracy", "poison-theory", "brewing", "poison-left-out"} <= set(page.ids)
    text = paths.markdown.read_text()
    assert "network.json" in text
    for name in re.findall(r"\(figures/([^)]*)\)", text):
        assert (tmp_path / "out" / "figures" / name).exists()


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.0501, "0.0501"),
        (0.99999, "1.00"),
        (0.00127123, "0.00127"),
        (3.4e-27, "3.40·10⁻²⁷"),
        (12345.6, "12,346"),
        (99999.7, "1.00·10⁵"),
        (0.0, "0"),
        (-2.5, "-2.50"),
        (float("inf"), "∞"),
        (None, "–"),
    ],
)
def test_numbers_of_any_size(value, shown):
    assert poison_names.number(value) == shown
