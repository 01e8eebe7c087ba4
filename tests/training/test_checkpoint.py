"""Checkpoints: whole or absent, bound to their model, and enough to go on as if never stopped."""

import errno
import os
import shutil

import pytest
import torch
from torch import nn

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise, global_stream
from robustssm.training import checkpoint
from tests.training.tiny import epoch


@pytest.mark.parametrize("average", [None, 0.9])
def test_training_goes_on_bit_for_bit(problem, tmp_path, average):
    whole = problem.learner(average=average)
    whole.memory["delta"] = torch.ones(2, 3)
    list(epoch(problem, whole))
    checkpoint.write(tmp_path / "last", whole, extra={"best": 1})
    list(epoch(problem, whole))

    other = problem.learner(seed=9, average=average)
    other.memory["delta"] = torch.zeros(2, 3)
    state = checkpoint.read(tmp_path / "last", other)
    assert state["extra"] == {"best": 1}
    assert other.memory["delta"].all()
    list(epoch(problem, other))
    for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    if average:
        assert torch.equal(whole.average.values["0.weight"], other.average.values["0.weight"])


def test_evaluated_weights_are_the_average_where_there_is_one(problem, tmp_path):
    learner = problem.learner(average=0.9)
    list(epoch(problem, learner))
    checkpoint.write(tmp_path / "best", learner)
    model = problem.model(seed=3)
    checkpoint.read_weights(tmp_path / "best", model)
    assert torch.equal(model[0].weight, learner.average.values["0.weight"])
    assert not torch.equal(model[0].weight, learner.model[0].weight)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damage_is_named_and_nothing_is_overwritten(problem, tmp_path, name, damage):
    learner = problem.learner()
    checkpoint.write(tmp_path / "last", learner)
    path = tmp_path / "last" / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "truncate" else b"\xff" + content[1:])
    with pytest.raises(CorruptFile, match=f"{name} must be a whole checkpoint file; it is damaged"):
        checkpoint.read(tmp_path / "last", learner)


def test_a_missing_file_is_named(problem, tmp_path):
    checkpoint.write(tmp_path / "last", problem.learner())
    (tmp_path / "last" / "model.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"model.safetensors .* damaged: missing"):
        checkpoint.read_weights(tmp_path / "last", problem.model())


def test_another_models_checkpoint_is_refused(problem, tmp_path):
    checkpoint.write(tmp_path / "last", problem.learner())
    with global_stream(Noise(0)):
        other = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match=r"must be a checkpoint of this model.*'0.bias' is \(8,\)"):
        checkpoint.read_weights(tmp_path / "last", other)


def test_no_checkpoint_is_said(problem, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none"):
        checkpoint.read_weights(tmp_path / "last", problem.model())


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint(problem, tmp_path, monkeypatch, fail_at):
    learner = problem.learner()
    checkpoint.write(tmp_path / "last", learner)
    before = checkpoint.read_state(tmp_path / "last")
    list(epoch(problem, learner))
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"must fit on the disk.*No space left.*--resume"):
        checkpoint.write(tmp_path / "last", learner)
    monkeypatch.undo()
    assert checkpoint.read_state(tmp_path / "last") == before
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_kill_between_the_renames_loses_nothing(problem, tmp_path):
    learner = problem.learner()
    checkpoint.write(tmp_path / "last", learner)
    shutil.move(tmp_path / "last", tmp_path / ".last.old")
    assert checkpoint.exists(tmp_path / "last")
    assert checkpoint.read(tmp_path / "last", learner)["step"] == 0
