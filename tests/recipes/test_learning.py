"""The embedded recipes learn: the demo's promise, cell by cell. Minutes; `make test-slow`."""

import os
from pathlib import Path

import pytest

from robustssm.core.config import override
from robustssm.experiment import run
from robustssm.recipes import recipe

DEMO = ("s4", "s4_ads_relu", "s4d", "dss", "s5", "mega", "mamba")
DATA = Path(os.environ.get("ROBUSTSSM_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("structure", DEMO)
def test_standard_training_reaches_nine_in_ten(structure, tmp_path):
    record = run(recipe(f"digits.{structure}_standard"), tmp_path / "run", device="cpu")
    assert record["clean_accuracy"] >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["pgd", "trades"])
@pytest.mark.parametrize("structure", ["s4", "s5"])
def test_adversarial_training_beats_standard_training(structure, method, tmp_path):
    record = run(recipe(f"digits.{structure}_{method}"), tmp_path / "run", device="cpu")
    assert record["robust_accuracy"] >= 0.5
    assert record["clean_accuracy"] >= record["attacks"]["pgd-10"] >= record["robust_accuracy"]
    assert not record["warnings"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_mnist_is_learned(tmp_path):
    if not (DATA / "MNIST").exists():
        pytest.skip("no MNIST: set ROBUSTSSM_DATA to the directory that holds MNIST/raw")
    settings = {"epochs": "3", "dataset.train_limit": "10000", "evaluation_examples": "300"}
    settings |= {
        "batch_size": "64",
        "monitor.train": "50",
        "monitor.test": "0",
        "attacks.1.steps": "20",
    }
    experiment = override(recipe("mnist14.s5_standard"), settings)
    record = run(experiment, tmp_path / "run", data_dir=DATA, device="cpu")
    assert record["clean_accuracy"] >= 0.85
    assert record["attacks"]["pgd-10"] < 0.2
