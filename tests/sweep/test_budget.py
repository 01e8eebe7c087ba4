"""Equal budgets: cells of a sweep cost the same to within one epoch, or it is said why not."""

import re
from pathlib import Path

import pytest

from robustssm.core.config import override
from robustssm.experiment.budget import price
from robustssm.recipes import recipe
from robustssm.sweep import lay_out
from robustssm.sweep.budget import with_budget

METHODS = ("standard", "pgd", "trades", "free", "yopo")


def plan(*asked: str, **overrides: str):
    return lay_out(asked, seeds=(0, 3), out=Path("runs"), overrides=overrides)


def test_every_cell_costs_the_budget_to_within_an_epoch() -> None:
    paid = with_budget(plan(*(f"digits.s4_{method}" for method in METHODS)), passes=120)
    assert not paid.problems and len(paid.jobs) == 2 * len(METHODS)
    for job in paid.jobs:
        cost = price(override(recipe(job.recipe), job.changes))
        assert 120 - cost.per_epoch < cost.total <= 120, job
    first = paid.jobs[0]
    assert first.changes["epochs"] == "120"  # standard training: one pass an epoch
    assert first.directory == Path("runs/digits.s4_standard+budget=120/seed_0")
    assert {job.seed for job in paid.jobs} == {0, 3}


def test_the_budget_of_a_recipe() -> None:
    paid = with_budget(plan("digits.s4_standard"), like="digits.s4_pgd")
    assert paid.jobs[0].changes["epochs"] == "120"  # 20 epochs of PGD-5, 6 passes each


def test_without_a_budget_nothing_changes() -> None:
    asked = plan("digits.s4_pgd")
    assert with_budget(asked) is asked


@pytest.mark.parametrize(
    ("overrides", "budget", "message"),
    [
        ({"epochs": "3"}, {"passes": 100.0}, "One thing must decide the number of epochs"),
        ({}, {"passes": 1.0}, r"digits\.s4_pgd: "),
        ({}, {"passes": 1.0, "like": "digits.s4_pgd"}, "must have one budget"),
        ({}, {"like": "digits.s4_gpd"}, r"Did you mean 'digits\.s4_pgd'"),
    ],
)
def test_what_cannot_be_is_a_problem_of_the_plan(overrides, budget, message) -> None:
    paid = with_budget(plan("digits.s4_pgd", **overrides), **budget)
    assert any(re.search(message, problem) for problem in paid.problems)
