"""Brewed poisons on the page: a drop counts only as far as it exceeds the controls."""

import dataclasses

import pytest

from robustssm.reporting import brewing
from robustssm.reporting.base import Figure, Paragraph, Table
from tests.reporting.poisoned import brewing as brewed


def blocks(result):
    return list(brewing.blocks([("brewing.json", result)]))


def tables(result):
    return [block for block in blocks(result) if isinstance(block, Table)]


@pytest.mark.parametrize(
    "drop, said",
    [
        (0.05, "worse than clean, random signs, duplicated only, poisoned without regulariser"),
        (0.0, "not told apart from, or better than, clean, random signs"),
        (-0.05, "not told apart from, or better than, clean, random signs"),
    ],
)
def test_the_verdict_is_that_of_the_intervals(drop, said):
    opening = next(b.text for b in blocks(brewed(drop)) if isinstance(b, Paragraph))
    assert said in opening


def test_unmatched_training_loss_is_said():
    opening = next(b.text for b in blocks(brewed(matched=False)) if isinstance(b, Paragraph))
    assert "not matched in 15 of 15" in opening
    arms = tables(brewed(matched=False))[0]
    assert arms.groups[0].rows[0].cells[4].state == "suspicious"


def test_tables_show_means_and_paired_differences():
    arms, differences, matching = tables(brewed())
    poisoned = next(row for row in arms.groups[0].rows if row.head == "poisoned")
    assert poisoned.cells[5].value == "86.0"
    assert poisoned.cells[5].details == ("85.0 to 87.0",)
    clean = differences.groups[0].rows[0]
    assert clean.head == "poisoned − clean"
    assert clean.cells[0].value == "−5.0"
    assert clean.cells[0].details == ("[−7.0, −3.0]", "lost 12, gained 3")
    assert clean.cells[1].value == "−0.050", "a loss is no percentage"
    assert matching.groups[0].rows[0].cells[0].value == "3"


def test_one_seed_has_no_interval_and_no_verdict_of_harm():
    one = brewed()
    differences = tuple(
        dataclasses.replace(d, differences=d.differences[:1], low=None, high=None)
        for d in one.differences
    )
    arms = tuple(a for a in one.arms if a.seed == 0)
    single = dataclasses.replace(one, seeds=(0,), arms=arms, differences=differences)
    opening = next(b.text for b in blocks(single) if isinstance(b, Paragraph))
    assert "over 1 seed," in opening
    assert "worse than" not in opening
    figure = next(b for b in blocks(single) if isinstance(b, Figure))
    assert len(figure.panels) == 3
