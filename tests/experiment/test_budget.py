"""Equal budgets of experiments: closed forms of the methods' costs, and what a budget refuses."""

import dataclasses

import pytest

from robustssm.attacks.apgd import APGDTargeted
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import override
from robustssm.core.errors import Inapplicable
from robustssm.experiment.budget import budgeted, on_record, price
from robustssm.recipes import recipe
from robustssm.training.free import Free
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from robustssm.training.yopo import Yopo
from tests.training.tiny import CrossEntropy

THREAT = Threat(eps=0.1)
DIGITS = recipe("digits.s4_standard")


def trained_by(objective, epochs=30):
    return dataclasses.replace(DIGITS, objective=objective, epochs=epochs)


def pgd(steps):
    return PGDTraining(threat=THREAT, attack=PGD(steps=steps, keep="last"))


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_pgd_training_costs_an_equivalent_per_step_and_one_more(steps):
    cost = price(trained_by(pgd(steps), epochs=5))
    assert (cost.per_epoch, cost.total) == (steps + 1, 5 * (steps + 1))
    assert cost.to_dict() == {
        "forward": steps + 1,
        "backward": steps + 1,
        "per_epoch": steps + 1,
        "epochs": 5,
        "total": 5 * (steps + 1),
    }


@pytest.mark.parametrize(
    "objective, per_epoch",
    [(Standard(), 1), (Free(threat=THREAT, replays=8), 8), (Yopo(threat=THREAT, outer=5), 5)],
)
def test_other_methods(objective, per_epoch):
    assert price(trained_by(objective)).per_epoch == per_epoch
    assert budgeted(trained_by(objective), 100) == 100 // per_epoch


def test_a_budget_is_used_up_but_for_less_than_an_epoch():
    for name in ("standard", "pgd", "trades", "free", "yopo", "fast", "mart", "awp", "jacobian"):
        experiment = recipe(f"digits.s4_{name}")
        for budget in (100, 330.5, 1000):
            epochs = budgeted(experiment, budget)
            cost = price(override(experiment, {"epochs": str(epochs)}))
            assert cost.total <= budget < cost.total + cost.per_epoch


def test_the_own_cost_pays_for_the_own_epochs():
    for name in ("pgd", "trades", "awp"):
        experiment = recipe(f"digits.s4_{name}")
        assert budgeted(experiment, price(experiment).total) == experiment.epochs


@pytest.mark.parametrize("budget", [10.9, 0, -1, float("inf"), float("nan")])
def test_a_budget_below_an_epoch_or_without_end_is_refused(budget):
    with pytest.raises(ValueError, match=r"must pay for an epoch of PGDTraining, 11; got"):
        budgeted(trained_by(pgd(10)), budget)


def test_classes_are_counted_only_where_they_cost():
    targeted = PGDTraining(threat=THREAT, attack=APGDTargeted(steps=5, targets=9))
    digits = trained_by(targeted, epochs=1)
    passes = targeted.passes(10)
    assert targeted.passes(2) != passes
    assert price(digits).per_epoch == sum(passes) / 2
    elsewhere = dataclasses.replace(recipe("mnist14.s4_pgd"), objective=pgd(3), epochs=1)
    assert price(elsewhere).total == 4, "without the files of MNIST"


def test_an_unknown_cost_is_refused():
    with pytest.raises(Inapplicable, match="does not state its own"):
        price(trained_by(CrossEntropy()))
    assert on_record(trained_by(CrossEntropy()), num_classes=10) is None


def test_what_a_run_records_is_its_price():
    experiment = recipe("digits.s4_pgd")
    assert on_record(experiment, num_classes=10) == price(experiment).to_dict()
