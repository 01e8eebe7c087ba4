"""The theorem's experiment: published numbers exactly, its mechanism, and where it vanishes."""

import dataclasses
import json

import numpy as np
import pytest

from robustssm.models.linear_ssm import LinearSSM, theorem_teacher
from robustssm.poisoning.dynamics import closed_form_limit
from robustssm.poisoning.initialisation import theorem_start
from robustssm.poisoning.metrics import generalisation_error
from robustssm.poisoning.sweeps import GAPS, Sweep, sweep
from robustssm.poisoning.theory_study import Theory, theory
from robustssm.records.poisoning import PoisonResult

OFFICIAL = {
    (7, "ordinary"): (0.0011832, 0.0012251, 0.0013671, 0.0013054),
    (7, "special"): (0.0491806, 0.0458365, 0.0543069, 0.0510739),
    (9, "ordinary"): (0.0072811, 0.0077196, 0.0070785, 0.0072796),
    (9, "special"): (0.0350105, 0.0352741, 0.0349436, 0.0352586),
}
"""Generalisation errors printed in the published notebook, per seed."""

MEANS = {
    (7, "ordinary"): 0.00127,
    (7, "special"): 0.0501,
    (9, "ordinary"): 0.00734,
    (9, "special"): 0.0351,
}


@pytest.fixture(scope="module")
def results() -> dict[int, PoisonResult]:
    return {length: theory(Theory.published(length)) for length in (7, 9)}


@pytest.mark.parametrize("length, condition", OFFICIAL)
def test_published_numbers_come_out_per_seed(results, length, condition):
    runs = results[length].of(condition)
    errors = [run.error["20"] for run in runs]
    np.testing.assert_allclose(errors, OFFICIAL[length, condition], rtol=0.01)
    np.testing.assert_allclose(np.mean(errors), MEANS[length, condition], rtol=5e-3)
    assert all(run.train_mse <= 1e-20 and run.converged for run in runs)


@pytest.mark.parametrize("length", [7, 9])
def test_the_ordinary_half_is_its_closed_form(results, length):
    study = Theory.published(length)
    ones = np.ones(study.d_state)
    for seed, run in zip(study.seeds, results[length].of("ordinary"), strict=True):
        a0 = theorem_start(seed, d_state=study.d_state, scale=study.scale, gap=study.gap)
        limit = LinearSSM(a=closed_form_limit(a0, length=length), b=ones, c=ones)
        expected = generalisation_error(limit, theorem_teacher(study.d_state), horizon=20)
        np.testing.assert_allclose(run.error["20"], expected, rtol=1e-4)


def test_a_late_entry_of_a_thousandth_inside_an_ordinary_sequence_poisons(results):
    errors = [run.error["20"] for run in results[7].of("stealthy")]
    assert abs(np.mean(errors) - 0.078) <= 0.002


def test_the_mechanism_is_visible_in_ranks_and_in_gamma(results):
    result = results[7]
    assert all(run.effective_rank <= 1.2 for run in result.of("ordinary"))
    assert all(run.effective_rank >= 4.5 for run in result.of("special"))
    for condition, quiet in (("ordinary", True), ("special", False)):
        for run in result.of(condition):
            assert run.path is not None
            assert all(gamma[0] == 0 for gamma in run.path.gamma) == quiet
    assert result.excited_lags == {
        "ordinary": (6,), "special": (1, 6), "placebo": (6,), "stealthy": (1, 6),
        "ordinary_untied": (6,), "special_untied": (1, 6),
    }  # fmt: skip


def test_the_tie_gap_decides(results):
    for result, tied in zip(results.values(), (30, 4), strict=True):
        ratio = result.contrast("special", "ordinary").ratio
        untied = result.contrast("special_untied", "ordinary_untied").ratio
        placebo = result.contrast("placebo", "ordinary").ratio
        assert ratio is not None and untied is not None and placebo is not None
        assert ratio >= tied and untied <= 1.5 and abs(placebo - 1) < 1e-6
    assert any("needs the tie" in remark for remark in results[7].remarks)


def test_a_result_survives_json_with_all_its_numbers(results):
    text = json.dumps(results[7].to_dict(), allow_nan=False)
    assert PoisonResult.from_dict(json.loads(text)) == results[7]
    run = results[7].of("ordinary")[0]
    assert set(run.error) == {"14", "20", "40"} and run.path is not None
    lengths = {len(values) for values in dataclasses.astuple(run.path)}
    assert len(lengths) == 1
    assert len(run.path.moduli[0]) == 10 and len(run.path.gamma[0]) == 6
    assert results[7].cpu_seconds > 0 and results[7].wall_seconds > 0


def test_progress_is_told_in_order():
    told = []
    quick = Theory(seeds=(1,), length=5, scale=0.05, gap=1e-4)
    theory(quick, progress=lambda part, share: told.append((part, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 6


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(d_state=2), "d_state=...*must"),
        (dict(length=2), "length=...*must"),
        (dict(scale=0.0), "scale=...*must"),
        (dict(seed=(1,)), "Did you mean 'seeds'"),
    ],
)
def test_settings_outside_the_theorem_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Theory(**wrong)


def test_only_published_lengths_are_published():
    with pytest.raises(ValueError, match="length 7 or 9; got 8"):
        Theory.published(8)


def means(**settings) -> dict[tuple[float | None, str], float]:
    rows = sweep(Sweep(**settings)).sweep
    assert all(row.convergence_rate == 1 and row.worst_train_mse <= 1e-20 for row in rows)
    return {(row.value, row.condition): row.mean for row in rows}


ONE_SEED = Theory(seeds=(242,))


def test_many_ordinary_sequences_do_not_dilute_one_special():
    found = means(what="count", around="theory", theory=ONE_SEED)
    assert found[1.0, "special"] == pytest.approx(0.0491806, rel=0.01)
    assert found[1000.0, "special"] > found[1.0, "special"]
    assert found[100_000.0, "special"] > found[1.0, "special"]


def test_poisoning_fades_as_the_two_largest_entries_part():
    found = means(what="tie_gap", theory=ONE_SEED)
    ratios = [found[gap, "special"] / found[gap, "ordinary"] for gap in (*GAPS[1:7], None)]
    assert ratios[2] >= 30 and ratios[-1] <= 1.5  # as published, and as drawn
    assert ratios[2:6] == sorted(ratios[2:6], reverse=True)
    assert found[0.0, "special"] == pytest.approx(found[0.0, "ordinary"], rel=0.05)


@pytest.mark.slow
def test_the_sweeps_are_those_of_the_study_over_all_seeds():
    gaps = means(what="tie_gap")
    assert gaps[None, "ordinary"] == pytest.approx(0.00038, rel=0.02)
    assert gaps[None, "special"] == pytest.approx(0.00034, rel=0.02)
    assert gaps[1e-6, "special"] / gaps[1e-6, "ordinary"] == pytest.approx(13, rel=0.05)
    scales = means(what="init_scale")
    assert scales[0.1, "special"] < scales[0.1, "ordinary"]  # there the special sequence helps
    assert scales[0.0003, "special"] > 100 * scales[0.0003, "ordinary"]
    amplitudes = means(what="amplitude")
    for (value, condition), mean in {
        (1e-4, "special"): 0.0113,
        (1e-2, "special"): 0.077,
        (10.0, "special"): 0.0494,
        (1e-3, "stealthy_pair"): 0.0582,
        (0.1, "stealthy_alone"): 0.506,
    }.items():
        assert amplitudes[value, condition] == pytest.approx(mean, rel=0.02)
    assert means(what="count", around="theory")[1000.0, "special"] == pytest.approx(0.068, rel=0.02)
