"""SSMs in a network: reduced forms here, whole ones among the slow tests."""

import dataclasses
import json

import numpy as np
import pytest

from robustssm.core.rng import Noise
from robustssm.poisoning.dynamics_study import Dynamics, dynamics
from robustssm.poisoning.network_study import Network, network, network_runs, yardstick
from robustssm.poisoning.training import Stop
from robustssm.records.poisoning import PoisonResult


def test_a_short_study_has_all_its_conditions_and_survives_json():
    study = Network(
        seeds=(4, 5), stop=Stop(level=0.05, extra_steps=20, max_steps=600), levels=(0.1,)
    )
    told: list[float] = []
    result = network(study, progress=lambda _, share: told.append(share))
    assert told == sorted(told) and told[-1] == 1
    names = [s.condition for s in result.summaries]
    assert names == [
        "ordinary", "special", "placebo", "ordinary_independent", "special_independent"
    ]  # fmt: skip
    assert result.excited_lags["special_independent"] == (1, 4, 5)
    assert PoisonResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    shared = {run.path.moduli[0] for run in result.of("ordinary") if run.path}
    apart = {run.path.moduli[0] for run in result.of("ordinary_independent") if run.path}
    assert len(shared) == len(apart) == 2 and not shared & apart


def test_special_sequences_are_fitted_fast_by_many_states_at_once():
    study = dataclasses.replace(
        Network.published(6), seeds=(0, 1, 2), stop=Stop(extra_steps=1500, max_steps=20_000)
    )
    _, runs = network_runs(study, ("special",))
    assert all(run.converged and run.effective_rank >= 5 for run in runs)
    assert 0.02 <= np.median([run.error["40"] for run in runs]) <= 0.5


def test_an_ordinary_run_leaves_its_plateau_and_finds_the_teacher():
    study = dataclasses.replace(
        Network.published(6), seeds=(5,), stop=Stop(extra_steps=4000, max_steps=20_000)
    )
    _, (run,) = network_runs(study, ("ordinary",))
    assert run.converged and run.train_mse <= 1e-8
    assert run.error["40"] <= 0.01 and run.contribution_rank <= 1.2
    assert run.path is not None and all(gamma[0] == 0 for gamma in run.path.gamma)
    # Of the teacher, 7.5 at every lag, times the slope.
    np.testing.assert_allclose(run.response[1:6], 7.5, rtol=0.02)


def test_the_error_of_the_zero_predictor_is_1_and_of_the_teacher_0():
    measure = yardstick(Network())
    teacher = measure.teacher
    assert measure.errors(teacher, seed=3) == 0
    nothing = dataclasses.replace(teacher, slopes=np.zeros(2))
    assert measure.errors(nothing, seed=3) == 1
    assert measure.horizons == (12, 20, 40)


def test_labels_are_the_teachers_network_of_its_ssm():
    study = Network()
    noise = Noise(0)
    made = study.sequences("special", noise)
    assert made.is_special.sum() == 20 and len(made.x) == 40
    expected = 7.5 * np.maximum(made.x.sum(axis=1), 0)
    np.testing.assert_allclose(yardstick(study).teacher.predict(made.x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Network(d_state=1), "must"),
        (lambda: Network(length=2), "length=...*must"),
        (lambda: Network(length=50), "training length"),
        (lambda: Network(support=(1, 6)), "positions from 1 to 4"),
        (lambda: Network.published(8), "length 6 or 10; got 8"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.slow
def test_band_e_length_6():
    result = network(Network.published(6))
    ordinary, special = result.of("ordinary"), result.of("special")
    fitted = [run.error["40"] for run in ordinary if run.train_mse <= 1e-8]
    assert len(fitted) >= 0.5 * len(ordinary) and np.median(fitted) <= 0.005
    assert result.summary("special").convergence_rate >= 0.9  # 15 of 16 when measured
    assert 0.02 <= result.summary("special").median <= 0.15
    assert result.summary("special").effective_rank >= 9
    assert all(run.effective_rank >= 5 for run in special if run.converged)
    alone = result.summary("ordinary_independent")
    assert alone.convergence_rate <= result.summary("ordinary").convergence_rate


@pytest.mark.slow
def test_length_10_poisoned_students_are_where_published_and_clean_ones_are_not():
    result = network(Network.published(10))
    poisoned = result.summary("special").converged_median
    assert poisoned is not None and 0.04 <= poisoned <= 0.15  # published mean .089
    # Published mean .045 over chosen seeds; fresh ones are no better than the poisoned.
    ratio = result.contrast("special", "ordinary").ratio
    assert ratio is not None and ratio < 2


@pytest.mark.slow
def test_band_f_in_a_network():
    result = dynamics(Dynamics(length=6, in_network=True))
    assert all(run.effective_rank >= 9 for run in result.of("special"))
    # Published 1.33 and 1.22 for two seeds; ours lie around 1.7, 1.0 by contribution.
    assert result.summary("ordinary").effective_rank <= 2.2
    assert result.summary("ordinary").contribution_rank <= 1.2
