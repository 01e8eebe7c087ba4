"""Whole runs of real recipes, made small: records, resuming, refusals."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from robustssm.core.config import from_dict, override, to_dict
from robustssm.core.errors import CorruptFile, NonFiniteLoss
from robustssm.experiment import Experiment, evaluate_run, run
from robustssm.experiment.fit import Fit
from robustssm.recipes import recipe
from robustssm.records import EvaluationResult, read_records
from robustssm.training import loop
from tests.experiment.small import SMALL


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "trades"
    experiment = override(recipe("digits.s4_trades"), SMALL)
    record = run(experiment, directory, name="digits.s4_trades", overrides=SMALL, device="cpu")
    return directory, record


def test_the_record_holds_what_it_promises(finished):
    directory, record = finished
    assert json.loads((directory / "evaluation.json").read_text()) == json.loads(json.dumps(record))
    assert set(record["attacks"]) == {"pgd-2", "pgd-3x2"}
    assert len(record["flags"]["clean"]) == record["n"] == 32
    for name in ("clean", "pgd-2", "pgd-3x2", "robust"):
        low, high = record["intervals"][name]
        assert 0 <= low <= record["counts"][name] / 32 <= high <= 1
    assert record["difference"]["clean"] == pytest.approx(
        record["checkpoints"]["best"]["clean_accuracy"]
        - record["checkpoints"]["last"]["clean_accuracy"]
    )
    result = EvaluationResult.from_dict(record)
    assert result.robust_accuracy <= min(result.attacks.values()) <= result.clean_accuracy


def test_metrics_have_every_step_and_epoch(finished):
    directory, _ = finished
    records = list(read_records(directory / "metrics.jsonl"))
    assert [r.step for r in records if r.kind == "step"] == [1, 2, 3, 4, 5, 6]
    epochs = [r for r in records if r.kind == "epoch"]
    assert [r.epoch for r in epochs] == [1, 2]
    for name in ("train_adversarial_loss", "validation_accuracy", "images_per_second"):
        assert all(math.isfinite(r.values[name]) for r in epochs)


def test_a_run_can_be_remade_from_its_own_record(finished, tmp_path):
    directory, record = finished
    settings = json.loads((directory / "recipe.json").read_text())["experiment"]
    experiment = from_dict(Experiment, settings)
    assert to_dict(experiment) == to_dict(override(recipe("digits.s4_trades"), SMALL))
    again = run(experiment, tmp_path / "again", device="cpu")
    assert again["flags"] == record["flags"]
    same_weights(directory, tmp_path / "again")


def test_a_finished_run_is_not_begun_again(finished):
    directory, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        run(override(recipe("digits.s4_trades"), SMALL), directory, device="cpu")


def test_evaluating_again_with_other_attacks(finished, tmp_path):
    directory, record = finished
    again = evaluate_run(
        directory,
        overrides={"attacks": '["fgsm"]', "evaluation_examples": "20"},
        out=tmp_path / "fgsm.json",
        device="cpu",
    )
    assert list(again["attacks"]) == ["fgsm"]
    assert again["n"] == 20
    assert again["flags"]["clean"] == record["flags"]["clean"][:20]
    assert json.loads((directory / "evaluation.json").read_text())["n"] == 32


def test_a_checkpoint_of_another_model_is_refused(finished):
    directory, _ = finished
    with pytest.raises(ValueError, match="must be a checkpoint of this model"):
        evaluate_run(directory, overrides={"model.d_model": "12"}, device="cpu")


def test_a_corrupt_checkpoint_is_named(finished, tmp_path):
    import shutil

    directory, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    path = copy / "checkpoints" / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CorruptFile, match=r"best/model.safetensors must be a whole checkpoint"):
        evaluate_run(copy, device="cpu")


def test_bounds_that_are_not_the_datas_are_refused(tmp_path):
    experiment = override(recipe("digits.s4_pgd"), SMALL | {"threat.bounds": "[-1, 1]"})
    with pytest.raises(ValueError, match=r"must be the range of the data, \[0.0, 1.0\]"):
        run(experiment, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    calls = []

    def sabotage(learner, *arguments, **keywords):
        calls.append(None)
        if len(calls) == 5:
            with torch.no_grad():
                next(learner.model.parameters()).fill_(math.nan)
        return train(learner, *arguments, **keywords)

    train = loop._train
    monkeypatch.setattr(loop, "_train", sabotage)
    experiment = override(recipe("digits.s4_standard"), SMALL)
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 5: 'loss' is nan.*last good"):
        run(experiment, tmp_path / "run", device="cpu")
    monkeypatch.undo()
    run(experiment, tmp_path / "run", device="cpu", resume=True)
    run(experiment, tmp_path / "whole", device="cpu")
    same_weights(tmp_path / "run", tmp_path / "whole")


def same_weights(one, other):
    for name in ("best", "last"):
        a, b = (load_file(d / "checkpoints" / name / "model.safetensors") for d in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"average": "0.9", "clip_norm": "null", "keep_every": "1"},
        {"augmentation.flip": "true", "augmentation.crop_padding": "1", "optimizer": "sgd"},
        {"monitor.test": "16", "selection": "test_adversarial_accuracy"},
        {"selection": "last", "threat.norm": "l2", "objective.threat.norm": "l2"},
        {"schedule.shape": "linear", "objective.beta_warmup": "0.5", "seed": "4"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_take_effect_end_to_end(tmp_path, options):
    experiment = override(recipe("digits.s5_ads_tanh_trades"), SMALL | options)
    record = run(experiment, tmp_path / "run", device="cpu")
    assert record["selection"] == experiment.selection
    last = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r.kind == "epoch"][-1]
    assert math.isfinite(last.values["train_seen_loss"])
    kept = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    expected = {"best", "last"} | ({"epoch_1", "epoch_2"} if experiment.keep_every else set())
    assert kept == expected


def test_a_selection_that_is_not_measured_is_refused_at_once():
    options = {"selection": "test_adversarial_accuracy", "monitor.test": "0"}
    with pytest.raises(ValueError, match=r"got monitor\.test=0\. Set monitor\.test to a number"):
        override(recipe("digits.s4_standard"), SMALL | options)


def test_stopped_between_the_last_batch_of_an_epoch_and_its_figures(
    finished, tmp_path, monkeypatch
):
    whole, _ = finished
    experiment = override(recipe("digits.s4_trades"), SMALL)
    figures = Fit._figures

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "_figures", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path, device="cpu", save_seconds=0.0)
    monkeypatch.setattr(Fit, "_figures", figures)
    run(experiment, tmp_path, device="cpu", resume=True)
    same_weights(whole, tmp_path)
