"""Beyond the theorem: reduced forms here, whole ones among the slow tests."""

import dataclasses
import json
import math

import numpy as np
import pytest

from robustssm.poisoning.dynamics_study import Dynamics, dynamics
from robustssm.poisoning.initialisation import Start
from robustssm.poisoning.linear_study import Beyond, beyond, cases_of, descent_runs
from robustssm.poisoning.sweeps import Sweep, sweep
from robustssm.poisoning.training import Stop
from robustssm.records.poisoning import PoisonResult


def medians(study: Beyond, *names: str) -> dict[str, float]:
    makers = study.makers()
    runs = descent_runs(study, cases_of(study, {name: makers[name] for name in names}))
    return {
        name: float(np.median([r.error["40"] for r in runs if r.condition == name]))
        for name in names
    }


def test_special_sequences_raise_the_error_by_more_than_as_many_ordinary_ones():
    study = dataclasses.replace(Beyond.published(6), seeds=(0, 1, 2, 3))
    found = medians(study, "ordinary", "special", "placebo")
    assert found["special"] >= 5
    assert found["special"] >= 10 * found["ordinary"]
    assert found["special"] >= 10 * found["placebo"]


@pytest.fixture(scope="module")
def small() -> PoisonResult:
    study = Beyond(
        seeds=(0, 1),
        levels=(0.1, 1e-9),
        stop=Stop(level=0.05, extra_steps=50, max_steps=2000),
        matched_stop=Stop(level=0.1, extra_steps=0, max_steps=8000),
        matched_step=0.01,
    )
    told: list[float] = []
    result = beyond(study, progress=lambda _, share: told.append(share))
    assert told == sorted(told) and told[-1] == 1
    return result


def test_all_conditions_share_students_and_ordinary_sequences(small):
    assert [s.condition for s in small.summaries] == ["ordinary", "special", "placebo", "dense"]
    study = Beyond(seeds=(7,))
    cases = {case.condition: case.data for case in cases_of(study, study.makers())}
    for name, data in cases.items():
        np.testing.assert_array_equal(data.x[:8], cases["ordinary"].x)
        assert len(data.x) == (8 if name == "ordinary" else 18)
        np.testing.assert_allclose(data.y, data.x.sum(axis=1), rtol=1e-12)
    first = [run.path.moduli[0] for run in small.runs if run.seed == 0 and run.path]
    assert len(first) == 4 and len(set(first)) == 1


def test_readings_at_equal_training_loss_stand_beside_those_at_the_stop(small):
    matched = small.contrast("special", "ordinary", "0.1")
    assert matched.above_seeds == matched.below_seeds == 2 and matched.ratio is not None
    nowhere = small.contrast("special", "ordinary", "1e-09")
    assert nowhere.ratio is None and nowhere.above_seeds == 0 and nowhere.above_median is None
    for run in small.of("ordinary"):
        assert run.matched["0.1"] is not None and run.matched["1e-09"] is None


def test_a_result_says_its_setting_and_survives_json(small):
    assert small.study == "beyond" and small.settings["stop"]["level"] == 0.05
    assert "bootstrap" in small.interval
    text = json.dumps(small.to_dict(), allow_nan=False)
    assert PoisonResult.from_dict(json.loads(text)) == small
    with pytest.raises(KeyError, match="no condition 'dens'"):
        small.summary("dens")


def test_a_run_that_explodes_is_recorded_and_not_hidden():
    study = Beyond(seeds=(0, 1), base_step=1e6, stop=Stop(level=1e-6, extra_steps=0, max_steps=300))
    makers = study.makers()
    runs = descent_runs(study, cases_of(study, {"special": makers["special"]}))
    assert all(run.diverged and not run.converged for run in runs)
    assert all(run.error["40"] == math.inf or run.error["40"] > 1e6 for run in runs)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Beyond(teacher=(1.01,)), r"\[-1, 1\]"),
        (lambda: Beyond(teacher=(0.9, 0.8, 0.7), d_state=3), "more states than its teacher.*got 3"),
        (lambda: Beyond(length=2), "length=...*must"),
        (lambda: Beyond(support=(1, 5)), r"positions from 1 to 4.*got \[5\]"),
        (lambda: Beyond(special_positions=(7,)), r"1, ..., 6; got \[7\]"),
        (lambda: Beyond(seeds=()), "seeds=...*must"),
        (lambda: Beyond.published(7), "length 6 or 10; got 7"),
        (lambda: Dynamics(in_network=True, teacher_dim=2), "be 1 with in_network"),
        (lambda: Dynamics(teacher_dim=5), "teacher_dim=...*must"),
        (lambda: Sweep(what="position", around="theory"), "position around beyond"),
        (lambda: Start(streams="same"), "must"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_the_position_that_matters_is_the_last_but_one():
    rows = sweep(Sweep(what="position", beyond=Beyond(seeds=(0, 1, 2)))).sweep
    found = {row.value: row.median for row in rows}
    assert max(found, key=lambda position: found[position]) == 5
    assert found[5] > 10 * max(found[2], found[3])


def test_teachers_of_more_states_and_fixed_weights():
    result = dynamics(Dynamics(length=10, teacher_dim=3, seeds=(0, 1, 2, 3)))
    for run in result.runs:
        assert run.path is not None and run.path.steps[0] == 0
        assert run.converged and run.response[0] == 20.0  # b = c = 1, whatever is learned
    assert 2.2 <= result.summary("ordinary").effective_rank <= 5
    assert result.summary("special").effective_rank > result.summary("ordinary").effective_rank
    assert any("Lag 0" in remark for remark in result.remarks)


def test_special_sequences_keep_many_states_alive_from_a_start_near_zero():
    study = Dynamics(length=6, seeds=(0, 1, 2)).setting()
    assert isinstance(study, Beyond)
    runs = descent_runs(study, cases_of(study, {"special": study.makers()["special"]}))
    assert np.median([run.effective_rank for run in runs]) >= 4.5


@pytest.mark.slow
def test_band_d_length_6():
    result = beyond(Beyond.published(6))
    ordinary, special = result.summary("ordinary"), result.summary("special")
    assert ordinary.seeds == 64
    assert 0.05 <= ordinary.median <= 0.3 and special.median >= 5
    for place, low, high in (("stop", 30, math.inf), ("0.001", 4, 15), ("0.0001", 2, 6)):
        ratio = result.contrast("special", "ordinary", place).ratio
        assert ratio is not None and low <= ratio <= high
    placebo = result.contrast("placebo", "ordinary").ratio
    assert placebo is not None and 0.5 < placebo < 2


@pytest.mark.slow
def test_band_d_length_10_and_that_little_is_left_at_equal_loss():
    result = beyond(Beyond.published(10))
    assert 0.08 <= result.summary("ordinary").median <= 0.3
    assert 0.6 <= result.summary("special").median <= 2.5
    ratio = result.contrast("special", "ordinary").ratio
    assert ratio is not None and ratio >= 4
    for place in ("0.01", "0.001"):
        matched = result.contrast("special", "ordinary", place)
        assert matched.ratio is not None and matched.ratio < 2


@pytest.mark.slow
def test_the_position_sweep_peaks_at_the_last_but_one():
    rows = sweep(Sweep(what="position")).sweep
    assert max(rows, key=lambda row: row.median).value == 5


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_band_f_standalone(dim):
    result = dynamics(Dynamics(length=6, teacher_dim=dim))
    ordinary = result.summary("ordinary").effective_rank
    special = result.summary("special").effective_rank
    if dim == 1:
        assert ordinary <= 2 and special >= 4.5
    else:
        assert dim - 0.8 <= ordinary <= dim + 0.6 and special > ordinary + 0.5
