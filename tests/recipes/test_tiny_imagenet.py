"""Tiny-ImageNet's recipes: the published protocol, patches, and a step on a miniature."""

import pytest

from robustssm import recipes
from robustssm.core.config import override
from robustssm.experiment import run
from robustssm.experiment.settings import build_model, read_data
from robustssm.testing.miniatures import write_tiny_imagenet

TIERS = ("tiny_imagenet", "tiny_imagenet_released")


@pytest.mark.parametrize("tier", TIERS)
def test_the_published_protocol(tier):
    experiment = recipes.recipe(f"{tier}.s4_trades")
    objective = experiment.objective
    assert (objective.threat.eps, objective.beta, experiment.epochs) == (0.031, 6.0, 180)
    assert objective.attack.step_size * 0.031 == pytest.approx(0.007)
    augmentation = experiment.augmentation
    assert (augmentation.crop_padding, augmentation.flip) == (4, True)
    assert experiment.dataset.classes == 50 and experiment.dataset.train_limit is None
    assert experiment.model.num_layers == 4 and experiment.batch_size == 256


def test_the_tiers_differ_as_text_and_code_do():
    text, code = (recipes.recipe(f"{tier}.s4_pgd") for tier in TIERS)
    assert (text.model.block.activation, code.model.block.activation) == ("gelu", "none")
    assert (text.objective.attack.name, code.objective.attack.name) == ("pgd", "pgd_released")


@pytest.mark.parametrize("structure", recipes.STRUCTURES)
@pytest.mark.parametrize("tier", TIERS)
def test_every_structure_reads_256_patches(tier, structure, tmp_path):
    small = {"dataset.classes": "2", "dataset.validation": "2", "model.num_layers": "1"}
    write_tiny_imagenet(tmp_path, classes=2, train=3, val=1)
    experiment = override(recipes.recipe(f"{tier}.{structure}_pgd"), small)
    splits = read_data(experiment, tmp_path)
    model = build_model(experiment, splits)
    tokens = model.embed(splits.test.x[:1].float() / 255)
    assert tuple(tokens.shape) == (1, 256, 128)
    assert model(splits.test.x[:1].float() / 255).shape == (1, 2)


def test_a_recipe_runs_on_a_miniature(tmp_path):
    write_tiny_imagenet(tmp_path / "data", classes=2, train=6, val=2)
    settings = {
        "dataset.classes": "2",
        "dataset.validation": "4",
        "model.num_layers": "1",
        "model.d_model": "8",
        "epochs": "1",
        "batch_size": "4",
        "objective.attack.steps": "1",
        "monitor.attack.steps": "1",
        "attacks.0.steps": "1",
        "attacks.1.steps": "2",
        "attacks.1.restarts": "1",
    }
    experiment = override(recipes.recipe("tiny_imagenet.s4d_pgd"), settings)
    data = tmp_path / "data"
    record = run(experiment, tmp_path / "run", data_dir=data, device="cpu")
    assert 0 <= record["robust_accuracy"] <= record["clean_accuracy"] <= 1
