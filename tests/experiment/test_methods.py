"""What ends or averages a training: early stopping, also of a resumed run, and uniform averages."""

import json

import pytest

from robustssm.core.config import override
from robustssm.experiment import run
from robustssm.recipes import recipe
from robustssm.records import read_json, read_records
from tests.experiment.small import SMALL

STOPPING = SMALL | {"epochs": "12", "early_stopping": '{"patience": 2}', "optimizer.lr": "1e-30"}


def epochs_of(directory):
    return [r.epoch for r in read_records(directory / "metrics.jsonl") if r.kind == "epoch"]


def test_training_stops_when_nothing_gets_better(tmp_path):
    """At a learning rate next to 0 the first epoch stays the best."""
    experiment = override(recipe("digits.s4_pgd"), STOPPING)
    run(experiment, tmp_path / "a", device="cpu", threads=1)
    assert epochs_of(tmp_path / "a") == [1, 2, 3]
    run(experiment, tmp_path / "a", device="cpu", threads=1, resume=True)  # does not go on
    assert epochs_of(tmp_path / "a") == [1, 2, 3]


def test_a_rule_that_cannot_tell_better_from_worse_is_refused():
    with pytest.raises(ValueError, match="rule of selection that compares epochs"):
        override(recipe("digits.s4_pgd"), STOPPING | {"selection": "last"})


def test_the_uniform_average_of_the_last_steps_is_what_is_measured(tmp_path):
    losses = {}
    for name, more in (("plain", {}), ("averaged", {"average": '{"start": 0.5}'})):
        place = tmp_path / name
        run(override(recipe("digits.s4_pgd"), SMALL | more), place, device="cpu", threads=1)
        epochs = [r for r in read_records(place / "metrics.jsonl") if r.kind == "epoch"]
        losses[name] = [r.values["validation_loss"] for r in epochs]
    assert losses["plain"][0] == losses["averaged"][0]  # before the average begins
    assert losses["plain"][1] != losses["averaged"][1]


def test_a_run_from_before_a_setting_existed_can_be_resumed(tmp_path):
    experiment = override(recipe("digits.s4_pgd"), SMALL)
    run(experiment, tmp_path, device="cpu", threads=1)
    file = tmp_path / "recipe.json"
    recorded = read_json(file)
    del recorded["experiment"]["early_stopping"]
    file.write_text(json.dumps(recorded))
    run(experiment, tmp_path, device="cpu", threads=1, resume=True)


@pytest.mark.parametrize("method", ["free", "yopo", "fast", "mart", "awp", "jacobian"])
def test_every_method_runs_as_a_recipe(method, tmp_path):
    experiment = override(recipe(f"digits.s4d_{method}"), SMALL)
    record = run(experiment, tmp_path, device="cpu", threads=1)
    assert 0 <= record["clean_accuracy"] <= 1
