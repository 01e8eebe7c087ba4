"""Suites of attacks stage by stage, and what stands below every table that has their number."""

from robustssm.records import Flagged
from robustssm.reporting import notes, suites, write_report
from robustssm.reporting.base import MISSING, Fold, Table
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting.synthetic import ATTACKS, attacked, result, write_run

SAID = "3 targets instead of 9, as there are 4 classes"
ADAPTED = attacked(0.9, (0.5, 0.4, 0.4, 0.35), label="autoattack_adapted", deviations=(SAID,))


def table(path, **checkpoints):
    write_run(path / "a", **checkpoints)
    (run,) = load([path]).finished
    (made,) = suites.of_run(run, marks={("a", "best"): {"w1": "warning"}}, level=0.95)
    return made


def tables_of(document):
    stack = [block for section in document.sections for block in section.blocks]
    for block in stack:
        if isinstance(block, Fold):
            stack += block.blocks
        elif isinstance(block, Table):
            yield block


def test_every_stage_shows_who_is_left_whom_it_broke_and_what_it_cost(tmp_path):
    made = table(tmp_path, best=attacked(0.9, (0.5, 0.4, 0.4, 0.35)), last=result(0.9, ATTACKS))
    assert made.caption.startswith("AutoAttack, stage by stage")
    heads = ("Still right", "Broke", "Calls", "Forwards", "Backwards")
    assert made.columns == tuple(("Best", head) for head in heads)
    shown = {row.head: [cell.value for cell in row.cells] for row in made.groups[0].rows}
    dash = MISSING.value
    assert shown == {
        "Clean": ["90.0", dash, dash, dash, dash],
        "APGD-CE": ["50.0", "80", "3", "18,000", "17,993"],
        "APGD-T": ["40.0", "20", "6", "10,000", "9,993"],
        "FAB-T": ["40.0", "0", "9", "8,000", "7,993"],
        "Square": ["35.0", "10", "12", "8,000", "7,993"],
        "Whole suite": ["35.0", "110", "30", "44,000", "43,972"],
    }
    square = made.groups[0].rows[4].cells[0]
    assert square.details == ("[28.7, 41.8]", "70 of 200")
    assert (square.marks, square.state) == (("w1",), "suspicious")
    assert made.notes == ()


def test_both_checkpoints_stand_side_by_side_once(tmp_path):
    best, last = attacked(0.9, (0.5, 0.4)), attacked(0.9, (0.4, 0.2))
    heads = {column[0] for column in table(tmp_path / "two", best=best, last=last).columns}
    assert heads == {"Best", "Last"}
    same = table(tmp_path / "one", best=best, last=best)
    assert {column[0] for column in same.columns} == {"Best, which is Last"}


def test_deviations_stand_below_every_table_with_the_number(tmp_path):
    write_run(tmp_path / "a", best=ADAPTED, last=ADAPTED)
    write_run(tmp_path / "b", layer="dss", best=ADAPTED, last=ADAPTED)
    document = Overview().render(load([tmp_path]))
    made = [each for each in tables_of(document) if _shows_accuracies(each)]
    assert len(made) == 7  # headline, comparison, index, and two per run
    assert all(each.notes == (f"AutoAttack (adapted): {SAID}.",) for each in made)
    paths = write_report([tmp_path], tmp_path / "out")
    assert paths.html.read_text().count(f"<li>AutoAttack (adapted): {SAID}.</li>") == 7
    assert paths.markdown.read_text().count(f"- AutoAttack (adapted): {SAID}.") == 7


def test_deviations_of_some_runs_say_which(tmp_path):
    write_run(tmp_path / "a", best=ADAPTED, last=ADAPTED)
    other = attacked(0.9, (0.5, 0.4), label="autoattack_adapted", deviations=("another",))
    write_run(tmp_path / "b", layer="dss", best=other, last=other)
    runs = load([tmp_path]).finished
    assert notes.below(runs, ["autoattack_adapted"]) == (
        f"AutoAttack (adapted): {SAID} (S4, TRADES).",
        "AutoAttack (adapted): another (DSS, TRADES).",
    )
    assert notes.below(runs, ["pgd-10"]) == ()


def test_the_name_of_a_suite_without_its_stages_is_doubted(tmp_path):
    write_run(tmp_path / "a", best=result(0.9, {"autoattack_standard": 0.3}))
    runs = load([tmp_path]).finished
    found = notes.below(runs, ["autoattack_standard"])
    assert found == ("AutoAttack: its stages are not on record.",)


def test_verdicts_stand_above_the_headline_and_in_the_fold(tmp_path):
    grave = Flagged(name="masking", message="gradients vanish", severity="invalid")
    mild = Flagged(name="steps", message="more steps find less")
    write_run(tmp_path / "a", best=result(0.9, ATTACKS, warnings=(grave,)))
    write_run(tmp_path / "b", layer="dss", best=result(0.9, ATTACKS, warnings=(mild,)))
    write_run(tmp_path / "c", layer="s5", best=result(0.9, ATTACKS, planned=1000))
    paths = write_report([tmp_path], tmp_path / "out")
    html, markdown = paths.html.read_text(), paths.markdown.read_text()
    for word, text in (
        ("unreliable", "1 of 3 runs: a (masking). Numbers struck out must not be believed."),
        ("suspicious", "1 of 3 runs: b (steps). Read the notes on them before using a number."),
        ("reliable", "1 of 3 runs: no check found anything (cheap checks; --diagnose runs all)"),
        ("partial", "c: 200 of 1000 examples, the time limit ended it"),
    ):
        said = f'<li class="{word}"><b>{word}</b><span class="text">: {text}</span></li>'
        assert html.index(said) < html.index("<table")
        assert markdown.index(f"- **{word}**: {text}") < markdown.index("| Structure |")
    fold = markdown[markdown.index("<details><summary>b:") :]
    assert fold.index("seed 0; suspicious</summary>") < fold.index(
        "- **suspicious**: best: look at"
    )
    assert fold.index("- **reliable**: last:") < fold.index("| Under |")
    assert "60.0 suspicious" in markdown and "~~60.0~~ invalid" in markdown
    assert '<td class="suspicious ' in html


def test_a_checkpoint_chosen_on_the_test_set_is_marked_but_its_attack_is_not_doubted(tmp_path):
    write_run(tmp_path / "a", selection="test_adversarial_accuracy")
    (run,) = load([tmp_path]).finished
    noted = notes.of([run])
    assert [each.note.severity for each in noted] == ["warning"]
    assert notes.marks(noted) == {("a", "best"): {"w1": ""}}
    assert run.verdict == "reliable"


def _shows_accuracies(made):
    """Not those of the ledger, of origins and of printed rows."""
    return made.corner not in ("Claim", "Comparison", "Structure, method") and (
        made.columns[0] != ("Seed",) or made.columns[1] != ("Command",)
    )
