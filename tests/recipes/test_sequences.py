"""Recipes of sequences that are no images: their threats leave the true rule right."""

import pytest
import torch

from robustssm import recipes
from robustssm.core.config import override
from robustssm.core.rng import Noise
from robustssm.experiment import run
from robustssm.experiment.settings import build_model, read_data

TIERS = ("copying", "adding", "tones")


@pytest.mark.parametrize("tier", ["copying", "adding"])
def test_the_rule_withstands_the_threat_everywhere(tier):
    experiment = recipes.recipe(f"{tier}.s4d_pgd")
    assert experiment.threat.eps < experiment.dataset.radius
    assert experiment.threat.channels == experiment.objective.threat.channels == (0,)


def test_the_rule_provably_withstands_the_threat_on_nineteen_tones_in_twenty():
    experiment = recipes.recipe("tones.s4d_pgd")
    test = experiment.dataset.read(data_dir=None, noise=Noise(0)).test
    radii = experiment.dataset.radii(test.x, test.y)
    assert (radii > experiment.threat.eps).double().mean() >= 0.95


@pytest.mark.parametrize("tier", TIERS)
def test_an_attack_of_a_recipe_leaves_the_marks_alone(tier):
    experiment = recipes.recipe(f"{tier}.s4d_pgd")
    splits = read_data(experiment, None)
    model = build_model(experiment, splits).eval()
    x, y = splits.test.x[:8], splits.test.y[:8]
    attack = experiment.attacks[0]
    x_adv = attack(model, x, y, threat=experiment.threat, noise=Noise(0))
    moved = (x_adv - x).abs()
    assert moved[..., 0].max() > 0.5 * experiment.threat.eps
    assert moved.max() <= experiment.threat.eps * (1 + 1e-5)
    if tier != "tones":
        assert torch.equal(x_adv[..., 1], x[..., 1])


QUICK = {
    "dataset.train": "16",
    "dataset.validation": "8",
    "dataset.test": "8",
    "epochs": "1",
    "batch_size": "8",
    "model.d_model": "8",
    "monitor.attack.steps": "1",
    "attacks.0.steps": "1",
    "attacks.1.steps": "2",
    "attacks.1.restarts": "1",
}


@pytest.mark.parametrize("method", ["pgd", "free", "yopo", "awp"])
def test_training_methods_take_a_threat_that_spares_the_marks(method, tmp_path):
    settings = QUICK | {"dataset.length": "64"}
    experiment = override(recipes.recipe(f"copying.s4d_{method}"), settings)
    record = run(experiment, tmp_path / "run", device="cpu")
    assert 0 <= record["robust_accuracy"] <= record["clean_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tier", TIERS)
def test_standard_training_solves_the_task(tier, tmp_path):
    record = run(recipes.recipe(f"{tier}.s4d_standard"), tmp_path / "run", device="cpu")
    assert record["clean_accuracy"] >= 0.95
    assert record["robust_accuracy"] <= 0.8


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tier", TIERS)
def test_pgd_training_resists(tier, tmp_path):
    record = run(recipes.recipe(f"{tier}.s4d_pgd"), tmp_path / "run", device="cpu")
    assert record["robust_accuracy"] >= 0.85
