"""Rates against scikit-learn, attackers, and a small scoring from end to end."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from robustssm.core.rng import Noise
from robustssm.poisoning.attackers import ATTACKS, attacker_makers, theory_makers
from robustssm.poisoning.defences import Defence
from robustssm.poisoning.linear_study import Beyond
from robustssm.poisoning.rates import GRID, auroc, false_positives_at, roc
from robustssm.poisoning.scoring import Scoring, score_all
from robustssm.poisoning.theory_study import Theory
from robustssm.poisoning.training import Stop
from robustssm.records.audit import DefenceResult


@st.composite
def scored(draw):
    n = draw(st.integers(2, 25))
    scores = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=n, max_size=n))
    count = draw(st.integers(1, n - 1))
    return np.array(scores), np.array(draw(st.permutations([True] * count + [False] * (n - count))))


@given(scored())
def test_the_area_and_the_curve_are_those_of_scikit_learn(made):
    scores, poison = made
    np.testing.assert_allclose(auroc(scores, poison), roc_auc_score(poison, scores), rtol=1e-12)
    false, true, _ = roc_curve(poison, scores, drop_intermediate=False)
    top = [true[false == f].max() for f in np.unique(false)]
    np.testing.assert_allclose(roc(scores, poison), np.interp(GRID, np.unique(false), top))
    enough = false[true >= 0.95].min()
    np.testing.assert_allclose(false_positives_at(scores, poison), enough, atol=1e-12)


def test_rates_of_four_by_hand():
    scores, poison = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    assert auroc(scores, poison) == 0.75 and auroc(-scores, poison) == 0.25
    assert false_positives_at(scores, poison) == 0.5
    assert false_positives_at(scores, poison, recall=0.5) == 0
    with pytest.raises(ValueError, match=r"clean and of poisoned sequences.*got 4 poisoned of 4"):
        auroc(scores, np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="1 NaN"):
        auroc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_attackers_share_the_clean_set_and_hide_as_they_say():
    study = Beyond()
    made = {
        name: make(Noise(5))
        for name, make in attacker_makers(study, stealthy=1e-3, hidden=1.0).items()
    }
    assert made.keys() == {"clean", *ATTACKS}
    for name, data in made.items():
        assert len(data.x) == (8 if name == "clean" else 18)
        assert data.is_special.sum() == (0 if name in ("clean", "none", "noise") else 10)
        if "noise" not in name:
            np.testing.assert_array_equal(data.x[:8], made["clean"].x)
    for name, size in (("stealthy", 1e-3), ("hidden", 1.0)):
        hidden = made[name].x[8:]
        np.testing.assert_array_equal(np.abs(hidden[:, 4]), size)
        np.testing.assert_array_equal(np.sign(hidden[:, 4]), np.sign(hidden[:, :2].sum(axis=1)))
        np.testing.assert_array_equal(hidden[:, :4], made["none"].x[8:, :4])
    moved = made["stealthy in noise"].x - made["stealthy"].x
    assert 5e-4 < moved.std() < 2e-3 and (moved != 0).all()
    theory = theory_makers(7, ordinary_count=3, extra_count=2, stealthy=1e-3)["published"](Noise(0))
    np.testing.assert_array_equal(theory.x[3:], [[0, 0, 0, 0, 0, 1, 0]] * 2)


@pytest.fixture(scope="module")
def small() -> DefenceResult:
    study = Scoring(
        beyond=Beyond(seeds=(0, 2), stop=Stop(level=0.02, extra_steps=1500, max_steps=6000)),
        theory=Theory(seeds=(0, 1)),
        defences=(Defence(), Defence(name="clamped", parametrisation="clamped")),
        controls=("none",),
        detectors=("tail energy", "gamma at the start"),
        flow_defences=(Defence(), Defence(name="untied start", untied=True)),
    )
    told: list[float] = []
    result = score_all(study, progress=lambda _, share: told.append(share))
    assert told == sorted(told) and told[-1] == 1
    return result


def test_a_perfect_detector_gives_the_clean_error_back(small):
    row = small.detector("beyond", "published", "tail energy")
    assert row.auroc == 1 and row.fpr_at_95 == 0 and row.ratio == 1
    assert small.detector("beyond", "published", "gamma at the start").ratio == 1
    assert row.roc[0] == (0.0, 1.0) and row.roc[-1] == (1.0, 1.0)


def test_noise_hides_the_stealthy_attacker_from_the_tail(small):
    seen = small.detector("beyond", "stealthy", "tail energy")
    blind = small.detector("beyond", "stealthy in noise", "tail energy")
    assert seen.auroc == 1 and blind.auroc is not None and blind.auroc < 0.9


def test_without_poison_only_false_positives_are_rated(small):
    row = small.detector("beyond", "none", "tail energy")
    assert row.auroc is None and row.flagged_poison is None and row.flagged_clean == 0


def test_clamping_helps_where_the_teacher_is_at_its_bound(small):
    assert small.defence("beyond", "published", "none").ratio > 5
    assert small.defence("beyond", "published", "clamped").ratio < 2
    assert any(v.startswith("beyond, published:") and "clamped" in v for v in small.verdicts)


def test_the_theorems_stealthy_poison_needs_the_tie(small):
    assert small.defence("theory", "stealthy", "none").ratio > 10
    assert small.defence("theory", "stealthy", "untied start").error < 0.01


def test_alarms_tell_exploding_students_from_clean_ones(small):
    rows = {(r.setting, r.attack, r.alarm): r for r in small.alarms}
    assert rows["theory", "published", "effective rank"].auroc == 1
    growth = rows["beyond", "published", "growth to 4 lengths"]
    assert growth.auroc == 1 and growth.poisoned > 2 > growth.clean


def test_the_scoring_survives_json(small):
    text = json.dumps(small.to_dict(), allow_nan=False)
    assert DefenceResult.from_dict(json.loads(text)) == small
    with pytest.raises(ValueError, match=r"'tail energie'.*Did you mean 'tail energy'"):
        Scoring(detectors=("tail energie",))
    with pytest.raises(KeyError, match="'psychic'"):
        small.detector("beyond", "published", "psychic")
    with pytest.raises(KeyError, match="'luck'"):
        small.defence("beyond", "published", "luck")
