"""What the command line prints of an evaluation: the verdict first, in a word, then the numbers."""

import io

import pytest
from rich.console import Console

from robustssm.cli.tables import result_table
from robustssm.records import Flagged
from tests.reporting.synthetic import ATTACKS, attacked, result

GRAVE = Flagged(name="zero_gradients", message="30 of [100] are zero [/b].", severity="invalid")
MILD = Flagged(name="stronger_is_weaker", message="more steps find less.")


def record(best, last=None, **more):
    last = last or best
    parts = {"best": best.to_dict() | {"epoch": 3}, "last": last.to_dict() | {"epoch": 4}}
    return best.to_dict() | {
        "checkpoint": "best",
        "selection": "validation_adversarial_accuracy",
        "test_examples": {"used": best.n, "all": 1000},
        "checkpoints": parts,
        **more,
    }


def printed(given, *, colour=False):
    out = io.StringIO()
    system = "standard" if colour else None
    Console(file=out, width=160, force_terminal=colour, color_system=system).print(
        result_table(given)
    )
    return out.getvalue()


def test_a_reliable_result_says_how_hard_it_was_looked_at():
    text = printed(record(result(0.9, ATTACKS)))
    assert text.startswith(
        "reliable: no check found anything (cheap checks; --diagnose runs all)\n"
    )
    assert "all checks were run" in printed(record(result(0.9, ATTACKS, diagnosed=True)))


@pytest.mark.parametrize(
    "sign, word, colour", [(MILD, "suspicious", "\x1b[1;33m"), (GRAVE, "unreliable", "\x1b[1;31m")]
)
def test_the_verdict_and_its_reasons_stand_above_every_number(sign, word, colour):
    given = record(result(0.9, ATTACKS, warnings=(sign,)))
    text = printed(given)
    assert text.startswith(f"{word}: ")
    assert text.index(f"{sign.name}: {sign.message}") < text.index("accuracy, %") < text.index("90")
    assert f"{colour}{word}" in printed(given, colour=True)


def test_checkpoints_that_differ_are_told_apart_and_a_reason_is_said_once():
    both = result(0.9, ATTACKS, warnings=(MILD, GRAVE))
    lines = printed(record(both, result(0.9, ATTACKS))).splitlines()
    assert lines[0].startswith("unreliable (best): the numbers must not be believed")
    assert lines[3].startswith("reliable (last): ")
    assert printed(record(both)).count("more steps find less") == 1


def test_a_partial_result_says_so():
    text = printed(record(result(0.9, ATTACKS, planned=1000)))
    assert "partial: 200 of 1000 examples, the time limit ended it\n" in text
    assert "partial" not in printed(record(result(0.9, ATTACKS, planned=200)))


def test_partial_checkpoints_have_no_difference():
    whole, part = result(0.9, ATTACKS), result(0.8, ATTACKS, planned=1000)
    assert "+10.0" in printed(record(whole, result(0.8, ATTACKS)))
    assert "+10.0" not in printed(record(whole, part))


def test_suites_have_their_names_and_deviations():
    text = printed(record(attacked(0.9, (0.5, 0.4, 0.4, 0.3))))
    assert "AutoAttack " in text and "30.0 [24.1, 36.7]" in text
    said = "3 targets instead of 9"
    adapted = attacked(0.9, (0.5, 0.3), label="autoattack_adapted", deviations=(said,))
    assert f"AutoAttack (adapted): {said}" in printed(record(adapted))
    unknown = printed(record(result(0.9, {"autoattack_standard": 0.3})))
    assert "AutoAttack: its stages are not on record" in unknown


def test_a_record_of_before_verdicts_is_shown():
    old = record(result(0.9, ATTACKS))
    for part in (old, *old["checkpoints"].values()):
        for key in ("verdict", "diagnosed", "planned", "suites", "curves", "data_hash"):
            del part[key]
    assert printed(old) == printed(record(result(0.9, ATTACKS)))


def test_one_evaluation_by_itself_is_a_table_too():
    text = printed(result(0.9, {"[i]mine": 0.5}).to_dict())
    assert "model" in text and "diff" not in text
    assert "[i]mine" in text and "50.0 [43.1, 56.9]" in text
