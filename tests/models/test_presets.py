"""Presets: published parameter counts, what sets text and code apart, the model contract."""

import dataclasses
import inspect
import json

import pytest
import torch
from torch import nn

from robustssm.core.config import from_dict
from robustssm.core.rng import Noise
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import ModelConfig
from robustssm.models.presets import modern, paper_v1, released_code, structures
from robustssm.models.tokens import LegacyRaster, Raster
from robustssm.testing.models import check_model

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
PUBLISHED = ("s4", "dss", "s5", "mega", "mamba")


def count(config, dataset):
    model = config.build(shape=SHAPES[dataset], num_classes=10, noise=Noise(0))
    return model.parameter_count()


@pytest.mark.parametrize(
    ("structure", "dataset", "ads", "expected"),
    [
        ("s4", "cifar10", None, 103_562),
        ("dss", "cifar10", None, 103_178),
        ("s5", "cifar10", None, 267_274),
        ("mega", "cifar10", None, 903_686),
        ("s4", "cifar10", "relu", 235_658),
        ("s4", "mnist", None, 44_202),
        ("mega", "mnist", None, 163_464),
    ],
)
def test_released_models_have_the_published_number_of_parameters(structure, dataset, ads, expected):
    assert count(released_code(structure, dataset, ads), dataset) == expected


def test_released_mamba_has_the_parameters_of_its_block():
    d, inner, states, rank, taps = 128, 256, 16, 8, 4
    block = d * 2 * inner + inner * taps + inner + inner * (rank + 2 * states)
    block += rank * inner + inner + inner * states + inner + inner * d
    expected = (3 * d + d) + 2 * d + 4 * (block + 2 * d) + (d * 10 + 10)
    assert round(expected, -3) == 469_000  # the count known of the released code
    assert count(released_code("mamba", "cifar10"), "cifar10") == expected


@pytest.mark.parametrize("structure", structures())
def test_adaptive_scaling_adds_one_map_per_layer_in_the_text_and_two_in_the_code(structure):
    width = 256 if structure == "mamba" else 128  # Mamba's scan runs on its inner channels
    added = {
        preset: count(preset(structure, "mnist", "tanh"), "mnist")
        - count(preset(structure, "mnist"), "mnist")
        for preset in (paper_v1, released_code)
    }
    assert added[paper_v1] == 2 * width * width
    assert added[released_code] == 2 * 2 * (width * width + width)


def test_structures_are_the_papers_and_s4d():
    assert structures() == (*PUBLISHED, "s4d")


@pytest.mark.parametrize("structure", structures())
@pytest.mark.parametrize("preset", [paper_v1, released_code])
@pytest.mark.parametrize("ads", [None, "relu"])
def test_published_models_keep_the_contract(preset, structure, ads):
    config = dataclasses.replace(preset(structure, "mnist", ads), d_model=8, num_layers=2)
    check_model(config, shape=(3, 2, 3))


@pytest.mark.parametrize("structure", structures())
@pytest.mark.parametrize("ads", [None, "sigmoid"])
def test_modern_models_keep_the_contract(structure, ads):
    check_model(modern(structure, d_model=6, ads=ads), shape=(1, 3, 3))


@pytest.mark.parametrize("structure", structures())
def test_full_size_models_give_finite_logits(structure):
    x = Noise(1).uniform(2, 3, 4, 4)
    for preset in (paper_v1, released_code):
        model = preset(structure, "cifar10").build(shape=(3, 4, 4), num_classes=10, noise=Noise(0))
        assert len(model.blocks) == 4 and model.input.out_features == 128
        assert model(x).isfinite().all()


@pytest.mark.parametrize("structure", structures())
def test_presets_survive_json(structure):
    presets = (paper_v1(structure, "mnist", "relu"), released_code(structure, "tiny_imagenet"))
    for config in (*presets, modern(structure, d_model=12, d_state=4)):
        assert from_dict(ModelConfig, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("structure", ["s4", "dss", "s4d"])
def test_text_has_gelus_where_the_code_is_affine_between_norms(structure):
    text, code = paper_v1(structure, "cifar10"), released_code(structure, "cifar10")
    assert text.block == BlockConfig(
        norm="post", activation="gelu", mixing="linear", mixing_activation="gelu"
    )
    assert code.block == dataclasses.replace(
        text.block, activation="none", mixing_activation="none"
    )
    assert text.layer == code.layer
    for config, affine in ((text, False), (code, True)):
        model = config.build(shape=(3, 4, 4), num_classes=10, noise=Noise(0)).double()
        branch = model.blocks[0]
        branch.norm = nn.Identity()
        h = Noise(1).normal(2, 16, 128).double()
        zero = branch(torch.zeros_like(h))
        curvature = (branch(2 * h) - zero - 2 * (branch(h) - zero)).abs().max().item()
        assert curvature < 1e-9 if affine else curvature > 1e-2


def test_text_and_code_differ_in_nothing_else():
    def settings(config):
        return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}

    def differing(one, two):
        one, two = settings(one), settings(two)
        return {name for name in one if one[name] != two[name]}

    for dataset in SHAPES:
        for structure, expected in {
            "s4": {"tokens", "block"},
            "dss": {"tokens", "block"},
            "s5": {"tokens"},
            "mega": {"tokens", "input_norm"},
            "mamba": {"tokens", "layer"},
        }.items():
            pair = paper_v1(structure, dataset), released_code(structure, dataset)
            assert differing(*pair) == expected, structure
    layers = [preset("mamba", "mnist").layer for preset in (paper_v1, released_code)]
    assert differing(*layers) == {"discretization"}
    assert [layer.discretization for layer in layers] == ["zoh", "euler"]


def test_adaptive_scaling_of_text_and_code():
    text, code = (p("dss", "mnist", "sigmoid").layer.scaling for p in (paper_v1, released_code))
    assert (text.activation, text.form, text.bias) == ("sigmoid", "scale", False)
    assert (code.activation, code.form, code.bias) == ("sigmoid", "scale_shift", True)
    assert paper_v1("dss", "mnist").layer.scaling is None


def test_legacy_token_order_is_a_named_switch_of_the_released_code():
    assert released_code("s4", "cifar10").tokens == LegacyRaster()
    corrected = released_code("s4", "cifar10", legacy_token_order=False)
    assert corrected.tokens == Raster() == paper_v1("s4", "cifar10").tokens
    assert dataclasses.replace(corrected, tokens=LegacyRaster()) == released_code("s4", "cifar10")


def test_sizes_follow_the_data_set():
    assert [released_code("s4", d).num_layers for d in ("mnist", "cifar10")] == [2, 4]
    assert [paper_v1("s4", d).layer.d_state for d in ("mnist", "cifar10")] == [32, 64]
    assert [paper_v1("mamba", d).layer.d_state for d in ("mnist", "cifar10")] == [32, 16]
    assert [paper_v1("mega", d).layer.d_hidden for d in ("mnist", "cifar10")] == [32, 256]
    assert [paper_v1("s5", d).layer.d_state for d in ("mnist", "cifar10")] == [128, 128]
    assert released_code("dss", "tiny_imagenet") == released_code("dss", "cifar10")


def test_modern_models_take_any_size():
    config = modern("s5", d_model=7, num_layers=3)
    assert (config.d_model, config.num_layers, config.layer.d_state) == (7, 3, 8)
    assert modern("s5", d_state=4).layer.d_state == modern("mamba", d_state=4).layer.d_state == 4
    assert modern("s4").block == modern("s5").block == BlockConfig(norm="pre", activation="gelu")
    assert modern("mamba").layer.expand == 2


@pytest.mark.parametrize("preset", [paper_v1, released_code])
def test_unknown_names_are_answered_with_the_nearest(preset):
    with pytest.raises(ValueError, match=r"No structure is called 's6'\. Did you mean"):
        inspect.unwrap(preset)("s6", "mnist")
    with pytest.raises(ValueError, match=r"Did you mean 'cifar10'\?"):
        inspect.unwrap(preset)("s4", "cifar100")


def test_tiny_imagenet_has_the_sizes_of_cifar10():
    assert paper_v1("dss", "tiny_imagenet") == paper_v1("dss", "cifar10")
