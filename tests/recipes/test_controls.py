"""Controls: matched where they say so, each changing one thing, each with a name of its own."""

import dataclasses

import pytest

from robustssm import recipes
from robustssm.core.config import to_dict
from robustssm.core.rng import Noise
from robustssm.models.controls import control
from robustssm.models.presets import modern
from robustssm.recipes import ADS, CONTROLS, METHODS, STRUCTURES
from robustssm.recipes.controls import Control
from robustssm.reporting import names

SHAPES = {"digits": (1, 8, 8), "mnist14": (1, 14, 14), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def count(tier: str, model: str) -> int:
    config = recipes.recipe(f"{tier}.{model}_pgd").model
    return config.build(shape=SHAPES[tier], num_classes=10, noise=Noise(0)).parameter_count()


@pytest.mark.parametrize("tier", SHAPES)
@pytest.mark.parametrize("structure", ["s4", "dss"])
def test_wide_models_have_the_parameters_of_adaptive_scaling(tier, structure):
    scaled, wide = count(tier, f"{structure}_ads_relu"), count(tier, f"{structure}_wide")
    assert abs(wide / scaled - 1) < 0.003
    assert count(tier, structure) < 0.7 * scaled


@pytest.mark.parametrize("tier", SHAPES)
def test_glu_and_baselines_are_near_adaptive_scaling_and_frozen_maps_do_not_count(tier):
    scaled = count(tier, "s4_ads_relu")
    assert abs(count(tier, "s4_glu") / scaled - 1) < 0.02
    for baseline in ("transformer", "cnn"):
        assert abs(count(tier, baseline) / scaled - 1) < 0.21
    assert count(tier, "s4_ads_frozen") == count(tier, "s4") == count(tier, "s4_affine")
    assert count(tier, "s4_ads_shift") == scaled == count(tier, "s4_affine_ads")


@pytest.mark.parametrize("tier", SHAPES)
def test_every_control_is_another_model_with_a_name_of_its_own(tier):
    cells = [c for c in (*recipes.cells(tier), *recipes.controls(tier)) if c.method == "pgd"]
    models = [recipes.recipe(cell.name).model for cell in cells]
    assert (
        len(set(models))
        == len(models)
        == len(STRUCTURES) * len(ADS) + len([c for c in CONTROLS.values() if tier in c.tiers])
    )
    printed = [names.model(to_dict(model)) for model in models]
    assert len(set(printed)) == len(printed)


@pytest.mark.parametrize("tier", SHAPES)
def test_a_control_changes_nothing_but_the_model(tier):
    for cell in (c for c in recipes.controls(tier) if c.method in ("pgd", "free")):
        plain = recipes.recipe(f"{tier}.{cell.structure}_{cell.method}")
        controlled = recipes.recipe(cell.name)
        assert dataclasses.replace(controlled, model=plain.model) == plain


def test_controls_change_one_thing_of_the_model():
    def changed(tier, name, beside):
        one, two = (recipes.recipe(f"{tier}.{each}_pgd").model for each in (name, beside))
        pairs = ((getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))
        fields = [f.name for f in dataclasses.fields(one)]
        return [name for name, (a, b) in zip(fields, pairs, strict=True) if a != b]

    for tier in SHAPES:
        assert changed(tier, "s4_wide", "s4") == ["d_model"]
        for name, beside in (("s4_affine_ads", "s4_affine"), ("s4_ads_shift", "s4_ads_relu")):
            assert changed(tier, name, beside) == ["layer"]
        for name in ("s4_bidirectional", "ema"):
            assert changed(tier, name, "s4") == ["layer"]
        assert changed(tier, "attention", "s4") == ["layer", "positions"]
        for name in ("s4_affine", "s4_glu"):
            assert changed(tier, name, "s4") == ["block"]
    released = recipes.recipe("mnist_released.s4_pgd").model
    assert recipes.recipe("mnist.s4_affine_pgd").model.block == released.block


def test_what_a_control_is_compared_with_exists():
    for name, each in CONTROLS.items():
        assert isinstance(each, Control) and "\n" not in each.about
        for tier in each.tiers:
            known = recipes.names(tier)
            assert {f"{tier}.{name}_{m}" for m in METHODS} <= set(known)
            assert f"{tier}.{each.beside}_pgd" in known


def test_unknown_controls_and_sizes_without_constants_are_refused():
    def small(structure):
        return modern(structure, d_model=48)

    with pytest.raises(ValueError, match=r"No control is called 's4_wid'. Did you mean 's4_wide'"):
        control("s4_wid", small)
    with pytest.raises(ValueError, match=r"start from a \(d_model, num_layers\) among"):
        control("s4_wide", small)


def test_adaptive_scaling_has_one_name_in_every_form():
    scaling = {"form": "shift", "activation": "tanh", "trainable": False, "initial": "identity"}
    layer = {"name": "s4", "scaling": scaling}
    assert names.structure(layer) == "S4 + shift-Tanh (frozen, identity start)"
    both_ways = {"name": "bidirectional", "layer": {"name": "s4"}}
    assert names.structure(both_ways) == "Bidirectional S4"
    assert names.model({"name": "cnn", "width": 16}) == "CNN"
    assert names.model({"name": "sequence_classifier", "layer": {"name": "gla"}}) == "gla"
