"""The run directory: one process at a time, one recipe for life, and metrics that rewind."""

import copy
import json
from collections import Counter

import pytest

from robustssm.core.config import to_dict
from robustssm.core.errors import CorruptFile, RunInUse
from robustssm.core.provenance import collect
from robustssm.experiment.rundir import RunDirectory, completed, differences, read_recipe
from robustssm.recipes import recipe
from robustssm.records import StepRecord, read_records

RECIPE = {"recipe": "r", "overrides": {}, "experiment": {"seed": 0, "objective": {"beta": 6.0}}}


@pytest.fixture
def started(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.locked():
        run.begin(RECIPE, collect(seed=0, device="cpu"), resume=False)
    run.checkpoint("last").mkdir(parents=True)
    return run


def test_a_directory_in_use_is_refused(started):
    with (
        started.locked(),
        pytest.raises(RunInUse, match=r"one process at a time.*another --out"),
        RunDirectory(started.path).locked(),
    ):
        pass


def test_an_existing_run_is_not_begun_anew(started):
    with pytest.raises(FileExistsError, match=r"holds one already.*--resume"):
        started.begin(RECIPE, collect(seed=0, device="cpu"), resume=False)
    assert read_recipe(started.path) == RECIPE


def test_a_run_that_never_trained_may_be_begun_anew(tmp_path):
    run = RunDirectory(tmp_path)
    run.begin(RECIPE, collect(seed=0, device="cpu"), resume=False)
    run.begin(RECIPE | {"recipe": "other"}, collect(seed=0, device="cpu"), resume=False)
    assert read_recipe(tmp_path)["recipe"] == "other"


def test_resuming_with_other_settings_names_them(started):
    other = RECIPE | {"experiment": {"seed": 1, "objective": {"beta": 3.0}}}
    with pytest.raises(ValueError, match="must keep its settings") as caught:
        started.begin(other, collect(seed=0, device="cpu"), resume=True)
    assert "seed: 0 there, 1 now" in str(caught.value)
    assert "objective.beta: 6.0 there, 3.0 now" in str(caught.value)


def test_resuming_is_noted(started):
    started.begin(RECIPE, collect(seed=0, device="cpu"), resume=True)
    started.finish(12.0)
    started.finish(3.0)
    record = json.loads((started.path / "provenance.json").read_text())
    assert len(record["resumed"]) == 1
    assert record["seconds"] == 15.0


def test_rewinding_keeps_what_the_checkpoint_knew(started):
    for epoch, step, kind in [(1, 5, "step"), (1, 10, "step"), (1, 10, "epoch"), (2, 15, "step")]:
        started.append(StepRecord(kind=kind, epoch=epoch, step=step, values={"loss": 1.0}))
    started.rewind(epoch=0, step=10)  # a checkpoint in mid-epoch, at its very last batch
    kept = Counter((r.kind, r.step) for r in read_records(started.metrics))
    assert kept == {("step", 5): 1, ("step", 10): 1}
    started.append(StepRecord(kind="epoch", epoch=1, step=10))
    started.rewind(epoch=1, step=10)
    assert Counter(r.kind for r in read_records(started.metrics)) == {"step": 2, "epoch": 1}


def test_a_directory_without_a_run_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a run directory; it has no recipe.json"):
        read_recipe(tmp_path)


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(CorruptFile, match="'experiment' is missing"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"experiment": ')
    with pytest.raises(ValueError, match=r"recipe.json must be a JSON file; it is damaged"):
        read_recipe(tmp_path)


def test_differences_see_tuples_as_lists():
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 there, null now", "b: null there, 1 now"]


def test_lines_wait_for_a_second_and_for_nothing_longer(started, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("robustssm.experiment.rundir.time.monotonic", lambda: now[0])

    def after(seconds, step):
        now[0] += seconds
        started.append(StepRecord(kind="step", epoch=1, step=step))
        return [r.step for r in read_records(started.metrics)]

    assert after(0.0, 1) == [1]
    assert after(0.5, 2) == [1]
    assert after(0.6, 3) == [1, 2, 3]
    assert after(0.1, 4) == [1, 2, 3]
    started.flush()
    assert [r.step for r in read_records(started.metrics)] == [1, 2, 3, 4]
    assert after(0.1, 5) == [1, 2, 3, 4]
    started.rewind(epoch=1, step=5)
    assert [r.step for r in read_records(started.metrics)] == [1, 2, 3, 4, 5]


def test_a_line_cut_off_by_a_kill_is_dropped_on_resuming(started):
    started.append(StepRecord(kind="step", epoch=1, step=1))
    with started.metrics.open("a") as file:
        file.write('{"kind": "step", "ep')
    resumed = RunDirectory(started.path)
    resumed.rewind(epoch=0, step=1)
    resumed.append(StepRecord(kind="step", epoch=1, step=2))
    resumed.flush()
    assert [r.step for r in read_records(started.metrics)] == [1, 2]


def test_a_setting_that_came_later_is_no_difference(tmp_path):
    settings = to_dict(recipe("digits.s4_ads_relu_pgd"))
    old = copy.deepcopy(settings)
    del old["model"]["layer"]["scaling"]["trainable"], old["early_stopping"]
    assert completed(old, settings) == settings
    assert completed(old, settings | {"micro_batches": 4})["micro_batches"] == 4
    old["model"]["layer"]["d_state"] = 4
    (difference,) = differences(completed(old, settings), settings)
    assert "model.layer.d_state" in difference
    old["model"]["layer"]["gone"] = 1
    assert any("gone" in said for said in differences(completed(old, settings), settings))
