"""Detectors, defences and audits on the page: nothing is called a defence that does not hold."""

import dataclasses

import pytest

from robustssm.records import write_json
from robustssm.reporting import defences, html, poison_load, sequence_audit
from robustssm.reporting.base import Figure, Fold, Paragraph, Table
from robustssm.reporting.poisoning import Poisoning
from robustssm.reporting.runs import Runs, Study
from tests.reporting import poisoned
from tests.reporting.test_html import HOSTILE, Page


def of(kind, blocks):
    return [block for block in blocks if isinstance(block, kind)]


def blocks(result):
    return list(defences.blocks([("defences.json", result)]))


def audit(result):
    return list(sequence_audit.blocks([("audit.json", result)]))


def test_a_check_mark_stands_where_the_error_is_under_twice_the_clean_one():
    table = of(Table, blocks(poisoned.defended()))[0]
    heads = [column[0] for column in table.columns]
    rows = {row.head: row.cells for row in table.groups[0].rows}
    published, stealthy = heads.index("published poison"), heads.index("stealthy")
    assert rows["exponential"][published].value == "0.190 ✓"
    assert rows["exponential"][stealthy].value == "0.210"
    assert "✓" not in rows["none"][published].value
    assert rows["none"][published].details == ("100× clean", "[8.00, 12.0]")
    assert "truncations *" in rows, "one that needs further labels is marked"
    assert any("needs labels" in note for note in table.notes)


def test_detectors_are_scored_against_every_attacker():
    table = of(Table, blocks(poisoned.defended()))[1]
    assert table.columns[:2] == (("no poison", "flagged"), ("no poison", "error filtered"))
    tail = dict(zip(table.columns, table.groups[0].rows[0].cells, strict=True))
    assert tail["no poison", "flagged"].value == "12.5 %"
    assert tail["stealthy", "AUROC"].value == "0.500"
    assert tail["stealthy", "AUROC"].details == ("[0.450, 0.550]",)
    assert tail["published poison", "FPR at 95 %"].value == "0.0 %"
    assert tail["stealthy", "error filtered"].details == ("2.00× clean",)


def test_verdicts_stand_first_and_every_attacker_has_its_curve():
    made = blocks(poisoned.defended())
    assert made[0] == Paragraph(text="A verdict of the record.")
    roc = next(f for f in of(Figure, made) if f.name.startswith("roc"))
    assert len(roc.panels) == 2, "there is none without poison"
    alarms = of(Table, made)[-1]
    assert [c.value for c in alarms.groups[0].rows[0].cells] == ["0.970", "10.0 %", "1.10", "∞"]


def test_explosions_and_absent_rows_are_drawn_and_told():
    exploded = poisoned.defence(
        "published",
        "none",
        100.0,
        error=float("inf"),
        errors=(1.0, float("inf")),
        error_high=float("inf"),
        ratio=float("inf"),
        converged=0.5,
    )
    quiet = poisoned.defence("none", "clip", 1.0)
    made = blocks(poisoned.defended(defences=(exploded, quiet), detectors=(), alarms=()))
    (table,) = of(Table, made)
    first, second = table.groups[0].rows
    assert first.cells[0].value == "∞"
    assert first.cells[0].details[-1] == "50% converged"
    assert first.cells[1].state == second.cells[0].state == "missing"
    assert "twice the clean median" in of(Figure, made)[0].panels[0]


def test_an_audit_names_rows_lags_and_how_sure_it_is():
    made = audit(poisoned.audited())
    verdict = of(Paragraph, made)[0].text
    assert "25 of 1,000 sequences of length 7 are suspicious (2.50%)" in verdict
    assert "Few sequences excite lag 1." in verdict
    table = of(Table, made)[0]
    assert len(table.groups[0].rows) == sequence_audit.LISTED
    first = table.groups[0].rows[0]
    assert (first.head, [c.value for c in first.cells]) == (
        "0",
        ["1, 2", "∞", "0.500", "50.0", "1.00 %"],
    )
    more = of(Fold, made)[0]
    assert "5 more" in more.summary
    figure = of(Figure, made)[0]
    assert len(figure.panels) == 3
    assert "threshold" in figure.panels[0]
    assert "flagged lag" in figure.panels[2]


def test_an_audit_that_finds_nothing_says_so():
    clean = poisoned.audited(flagged=0, greedy=True)
    made = audit(clean)
    assert "0 of 1,000" in of(Paragraph, made)[0].text
    assert "No sequence excites lag 1" in of(Paragraph, made)[0].text
    assert of(Table, made) == []
    assert len(of(Figure, made)[0].panels) == 1
    empty = dataclasses.replace(clean, lags=(), sequences=0)
    assert of(Figure, audit(empty)) == []


def test_long_sequences_list_flagged_lags_first():
    long = poisoned.audited(length=300)
    last = dataclasses.replace(long.lags[-1], flagged=True)
    lags = audit(dataclasses.replace(long, lags=(*long.lags[:-1], last)))[-1].blocks[0]
    heads = [row.head for row in lags.groups[0].rows]
    assert heads[:3] == ["1", "299", "0"]
    assert len(heads) == sequence_audit.LAGS
    assert "236 more lags" in lags.notes[0]


@pytest.mark.parametrize(
    "made", [poisoned.defended(), poisoned.audited()], ids=["defence", "audit"]
)
def test_records_are_found_and_come_back_equal(tmp_path, made):
    write_json(tmp_path / "some.json", made.to_dict())
    (study,), damaged = poison_load.find([tmp_path])
    assert study.result == made
    assert damaged == ()


def test_the_page_is_whole_and_escapes_names():
    audits = poisoned.audited(source=HOSTILE)
    results = (poisoned.defended(), audits, poisoned.audited(flagged=2))
    studies = tuple(Study(name=f"{at}.json", result=each) for at, each in enumerate(results))
    page = Page(html.page(Poisoning().render(Runs(finished=(), studies=studies))))
    assert len(page.ids) == len(set(page.ids))
    assert {"defences", "sequence-audit"} <= set(page.ids)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # ours
