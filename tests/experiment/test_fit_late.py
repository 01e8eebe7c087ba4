"""A whole training whose scalars are read one batch late: checkpoints, lines, errors, resuming."""

import math

import pytest
import torch
from safetensors.torch import load_file

from robustssm.core.config import override
from robustssm.core.errors import NonFiniteLoss
from robustssm.core.placement import Placement, cpu_threads
from robustssm.experiment.display import Display
from robustssm.experiment.fit import Fit
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import read_data
from robustssm.recipes import recipe
from robustssm.records import read_records
from robustssm.training import loop
from robustssm.training.readings import AT_ONCE, Fetching
from tests.experiment.small import SMALL

EXPERIMENT = override(recipe("digits.s4_standard"), SMALL | {"keep_every": "1", "average": "0.9"})


@pytest.fixture(autouse=True)
def late(monkeypatch):
    monkeypatch.setattr(loop, "fetching_from", lambda _: Fetching(AT_ONCE.start, lag=1))


class Stopping(Display):
    """Ctrl-C when a step is shown, or kill -9, which loses the lines that are not written yet."""

    def __init__(self, run, at, how):
        self._run, self._steps, self._how = run, at, how

    def step(self, **keywords):
        self._steps -= 1
        if not self._steps:
            if self._how == "killed":
                self._run._waiting.clear()
            raise KeyboardInterrupt


def fit(directory, *, save_seconds=1e9, stop=None, how="interrupted"):
    directory.mkdir(exist_ok=True)
    splits, run = read_data(EXPERIMENT, None), RunDirectory(directory)
    display = Display() if stop is None else Stopping(run, stop, how)
    with cpu_threads(1):
        Fit(EXPERIMENT, run, splits, Placement("cpu"), display, save_seconds)()


def records(directory):
    return [
        (r.kind, r.epoch, r.step, r.values.get("loss"), r.values.get("train_seen_loss"))
        for r in read_records(directory / "metrics.jsonl")
    ]


def weights(directory, name):
    return load_file(directory / "checkpoints" / name / "model.safetensors")


def same(one, other):
    assert records(one) == records(other)
    for name in ("last", "best", "epoch_1", "epoch_2"):
        a, b = weights(one, name), weights(other, name)
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """The same training with every scalar read before its step."""
    directory = tmp_path_factory.mktemp("fit") / "at_once"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fetching_from", lambda _: AT_ONCE)
        fit(directory)
    return directory


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_reading_late_changes_neither_weights_nor_lines(at_once, tmp_path, save_seconds):
    fit(tmp_path / "late", save_seconds=save_seconds)
    same(at_once, tmp_path / "late")


@pytest.mark.parametrize("how", ["interrupted", "killed"])
@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_stopped_at_any_step_and_resumed_is_the_same_run(
    at_once, tmp_path, stop, save_seconds, how
):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "late", save_seconds=save_seconds, stop=stop, how=how)
    if how == "interrupted":
        assert len(records(tmp_path / "late")) >= stop, "lines must be written on the way out"
    fit(tmp_path / "late", save_seconds=save_seconds)
    same(at_once, tmp_path / "late")


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
@pytest.mark.parametrize("step", [2, 3, 4, 5, 6])
def test_no_checkpoint_is_written_after_a_nan(at_once, tmp_path, monkeypatch, step, save_seconds):
    train = loop._train

    def sabotaged(learner, *arguments, **keywords):
        if learner.step + 1 == step:
            with torch.no_grad():
                next(learner.model.parameters()).fill_(math.nan)
        return train(learner, *arguments, **keywords)

    monkeypatch.setattr(loop, "_train", sabotaged)
    with pytest.raises(NonFiniteLoss, match=f"step {step}: 'loss' is nan"):
        fit(tmp_path / "late", save_seconds=save_seconds)
    kept = list((tmp_path / "late" / "checkpoints").glob("*/*.safetensors"))
    assert bool(kept) == (step > 3 or (save_seconds == 0.0 and step > 2))
    assert all(t.isfinite().all() for file in kept for t in load_file(file).values())
    monkeypatch.setattr(loop, "_train", train)
    fit(tmp_path / "late", save_seconds=save_seconds)
    same(at_once, tmp_path / "late")
