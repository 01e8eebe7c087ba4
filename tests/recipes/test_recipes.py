"""Recipes: every name makes an experiment that survives JSON; no cell of the tables is missing."""

import pytest

from robustssm import recipes
from robustssm.core.config import from_dict, to_dict
from robustssm.experiment import Experiment


@pytest.mark.parametrize("tier", recipes.TIERS)
def test_every_recipe_is_a_value_that_survives_json(tier):
    for name in recipes.names(tier):
        experiment = recipes.recipe(name)
        assert from_dict(Experiment, to_dict(experiment)) == experiment, name


def test_every_cell_of_the_tables_has_a_recipe():
    names = set(recipes.names())
    for tier in ("digits", "mnist14", "mnist", "cifar10"):
        for structure in ("s4", "dss", "s5", "mega", "mamba", "s4_ads_relu", "dss_ads_tanh"):
            for method in ("standard", "pgd", "trades"):
                assert f"{tier}.{structure}_{method}" in names


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No recipe is called 'digits.s4_trade'. Did you mean"):
        recipes.recipe("digits.s4_trade")


def test_a_function_of_ones_own():
    assert recipes.recipe("tests.recipes.mine:quick").epochs == 1
    with pytest.raises(ValueError, match=r"No function of tests.recipes.mine is called 'quik'"):
        recipes.recipe("tests.recipes.mine:quik")
    with pytest.raises(ValueError, match="must be importable"):
        recipes.recipe("no.such.module:quick")


@pytest.mark.parametrize("tier", ["mnist", "cifar10"])
def test_the_papers_protocol(tier):
    experiment = recipes.recipe(f"{tier}.s4_trades")
    eps, step, beta, epochs = {
        "mnist": (0.3, 0.04, 1.0, 100),
        "cifar10": (0.031, 0.007, 6.0, 180),
    }[tier]
    objective = experiment.objective
    assert (objective.threat.eps, objective.beta, experiment.epochs) == (eps, beta, epochs)
    assert objective.attack.step_size * eps == pytest.approx(step)
    assert (objective.attack.steps, objective.attack.start, objective.attack.loss) == (
        10,
        "normal",
        "kl",
    )
    optimizer = experiment.optimizer
    assert (optimizer.lr, optimizer.weight_decay, experiment.batch_size) == (1e-3, 2e-4, 256)
    assert (experiment.schedule.shape, experiment.schedule.per) == ("cosine", "epoch")
    assert experiment.augmentation.flip == (tier == "cifar10")


def test_released_recipes_run_what_the_code_ran():
    released = recipes.recipe("cifar10_released.s4_pgd")
    assert released.objective.attack.name == "pgd_released"
    assert released.model.tokens.name == "legacy_raster"
    assert released.model.block.activation == "none"
    assert released.attacks[0].name == "pgd_released"
    assert recipes.recipe("cifar10.s4_pgd").model.tokens.name == "raster"


def test_test_data_never_chooses_the_best_epoch():
    for name in recipes.names():
        assert recipes.recipe(name).selection.startswith("validation")


def test_every_training_method_has_a_recipe_and_free_training_fewer_epochs():
    names = {cell.method: recipes.recipe(cell.name) for cell in recipes.cells("cifar10")}
    assert names.keys() == set(recipes.METHODS)
    assert names["free"].epochs == 45 and names["yopo"].epochs == 180
    released = recipes.recipe("cifar10_released.s4_free")
    assert (released.objective.variant, released.epochs) == ("released", 180)
    assert names["mart"].objective.attack.loss == "cross_entropy"
    assert names["awp"].objective.objective == names["pgd"].objective
