"""Messages in three parts, and the nearest known name."""

import pytest

from robustssm.core.errors import CorruptFile, Inapplicable, NonFiniteLoss, unknown, violation


def test_a_violation_says_what_must_be_what_came_and_what_to_do():
    assert violation("`PGD(steps=...)`", "be positive", 0, "Try steps=10.") == (
        "`PGD(steps=...)` must be positive; got 0. Try steps=10."
    )
    assert violation("`eps`", "be finite", "nan") == "`eps` must be finite; got nan."


@pytest.mark.parametrize(
    "name, known, answer",
    [
        ("pdg", ["pgd", "apgd", "fab"], "No attack is called 'pdg'. Did you mean 'pgd'?"),
        ("zz", ["pgd", "fab"], "No attack is called 'zz'. Known: fab, pgd."),
        ("zz", [], "No attack is called 'zz'. None are known."),
    ],
)
def test_unknown_offers_the_nearest_or_the_list(name, known, answer):
    assert unknown("attack", name, known) == answer


def test_a_long_list_is_cut_and_says_so():
    answer = unknown("recipe", "?", [f"recipe{i:03}" for i in range(50)])
    assert answer.endswith("recipe039, ....")
    assert "recipe040" not in answer


def test_errors_can_be_caught_as_what_they_are():
    assert issubclass(CorruptFile, ValueError)
    assert issubclass(NonFiniteLoss, ArithmeticError)
    assert not issubclass(Inapplicable, ValueError)
