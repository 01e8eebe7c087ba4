"""Grids: every entry makes an experiment; names are distinct; tables hold what they promise."""

import functools
import json

import pytest

from robustssm.core.config import override, to_dict
from robustssm.recipes import METHODS, grids, recipe


@functools.cache
def made(name):
    entries = grids.grid(name).entries
    return {entry.name: override(recipe(entry.recipe), entry.overrides) for entry in entries}


@pytest.mark.parametrize("name", grids.grids())
def test_every_entry_of_a_grid_is_an_experiment(name):
    grid = grids.grid(name)
    assert grid.name == name and grid.title and "\n" not in grid.title
    experiments = made(name)
    assert len(experiments) == len(grid.entries), "names must be distinct"
    written = {json.dumps(to_dict(experiment)) for experiment in experiments.values()}
    assert len(written) == len(grid.entries), "experiments must be distinct"


def test_an_unknown_grid_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No grid is called 'digits.table3'. Did you mean"):
        grids.grid("digits.table3")


def test_the_tables_of_the_digits_are_what_they_were():
    first, second = (grids.grid(f"digits.table{number}").entries for number in (1, 2))
    assert [e.recipe for e in first][:6] == [
        "digits.mega_trades",
        "digits.mega_pgd",
        "digits.mega_yopo",
        "digits.mega_free",
        "digits.mega_standard",
        "digits.mamba_trades",
    ]
    assert [e.recipe for e in second][:5] == [
        "digits.s4_ads_relu_trades",
        "digits.s4_ads_relu_pgd",
        "digits.dss_ads_relu_trades",
        "digits.dss_ads_relu_pgd",
        "digits.s4_ads_sigmoid_trades",
    ]
    assert (len(first), len(second)) == (25, 16)


def test_the_methods_of_the_digits_are_all_nine():
    experiments = made("digits.methods")
    assert {name.rpartition("_")[2] for name in experiments} == set(METHODS)


def test_small_mnist_is_as_the_results_state_it():
    for experiment in made("mnist14.table").values():
        assert (experiment.dataset.train_limit, experiment.epochs) == (8000, 12)
        assert experiment.evaluation_examples == 200
        monitor = experiment.monitor
        assert (monitor.train, monitor.validation, monitor.test) == (200, 500, 200)
        labels = [attack.label for attack in experiment.attacks]
        assert labels == ["pgd-10", "autoattack_standard"]
        assert experiment.attacks[0].step_size == 0.13333333333333333


@pytest.mark.parametrize("dataset, step", [("mnist", 0.04), ("cifar10", 0.007)])
def test_the_papers_tables_keep_its_protocol(dataset, step):
    for table, cells in (("table1", 25), ("table2", 16)):
        for suffix in ("", "_released"):
            experiments = made(f"{dataset}.{table}{suffix}")
            assert len(experiments) == cells
            for name, experiment in experiments.items():
                assert name.startswith(f"{dataset}{suffix}.")
                assert experiment.evaluation_examples is None
                pgd = experiment.attacks[-2]
                assert pgd.step_size * experiment.threat.eps == pytest.approx(step)
                first = ["pgd_released-10"] if suffix else []
                labels = [attack.label for attack in experiment.attacks]
                assert labels == [*first, "pgd-10", "autoattack_standard"]


def test_orders_of_tokens_differ_in_nothing_else():
    experiments = made("cifar10.token_order")
    for structure in ("s4", "s5"):
        true, scrambled = (
            experiments[f"cifar10.{structure}_pgd+{order}"] for order in ("raster", "legacy_raster")
        )
        assert true.model.tokens.name == "raster"
        assert override(true, {"model.tokens": "legacy_raster"}) == scrambled


def test_overrides_are_texts_as_the_command_line_takes_them():
    for name in grids.grids():
        for entry in grids.grid(name).entries:
            assert all(isinstance(text, str) for text in entry.overrides.values())
            if "attacks" in entry.overrides:
                assert json.loads(entry.overrides["attacks"])
