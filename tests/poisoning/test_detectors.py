"""Detectors: closed forms, what leaves them unchanged, what each sees and does not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher
from robustssm.poisoning.attackers import concealed
from robustssm.poisoning.detectors import (
    activation_clustering,
    deep_knn,
    final_states,
    gamma_influence,
    gradient_influence,
    leverage,
    rank_alarm,
    robust_z,
    spectral_signature,
    stability_alarm,
    tail_energy,
)
from robustssm.poisoning.dynamics import gamma_coefficients
from robustssm.poisoning.excitation import excitation_share, lag_excitation
from robustssm.poisoning.rates import auroc
from robustssm.poisoning.sequences import dense, ordinary, special
from robustssm.poisoning.training import Students


def drawn(noise: Noise, *shape: int) -> np.ndarray:
    return noise.normal(*shape, dtype=torch.float64).numpy()


def system(noise: Noise, d_state: int = 4) -> LinearSSM:
    parts = [drawn(noise, d_state) for _ in range(3)]
    return LinearSSM(a=0.7 * np.tanh(parts[0]), b=parts[1], c=parts[2])


def poisoned(seed: int, length: int = 6):
    noise = Noise(seed)
    plain = ordinary(12, length=length, support=(1, 2), noise=noise.fork("o"))
    return plain + special(5, length=length, noise=noise.fork("s"))


LABELLED = {
    "gamma": gamma_influence,
    "gradient": gradient_influence,
}
UNLABELLED = {
    "tail energy": tail_energy,
    "excitation": excitation_share,
    "leverage": leverage,
    "spectral": spectral_signature,
    "clustering": activation_clustering,
}


@pytest.mark.parametrize("name", UNLABELLED)
@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-120, 0.3, 7.0, 1e120]))
def test_a_scale_or_an_order_of_the_set_changes_no_score(name, seed, scale):
    x = dense(15, length=6, noise=Noise(seed)).x
    order = Noise(seed).fork("order").permutation(15).numpy()
    scores = UNLABELLED[name](x)
    np.testing.assert_allclose(UNLABELLED[name](scale * x), scores, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(UNLABELLED[name](x[order]), scores[order], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LABELLED)
@given(seed=st.integers(0, 100))
def test_shares_of_influence_are_scale_and_order_free_and_add_up_to_one(name, seed):
    noise = Noise(seed)
    x, student = dense(15, length=6, noise=noise).x, Students(ssm=system(noise))
    y = diagonal_teacher(1.0).last_output(x)
    scores = LABELLED[name](x, y, student)
    order = noise.fork("order").permutation(15).numpy()
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(LABELLED[name](3 * x, 3 * y, student), scores, rtol=1e-9)
    np.testing.assert_allclose(LABELLED[name](x[order], y[order], student), scores[order])


@given(seed=st.integers(0, 100))
def test_influence_on_the_diagonal_is_autograds(seed):
    noise = Noise(seed)
    x, student = dense(5, length=6, noise=noise).x, system(noise)
    y = diagonal_teacher(1.0).last_output(x)
    a = torch.from_numpy(student.a.copy()).requires_grad_()
    norms = []
    for row, label in zip(x, y, strict=True):
        state = torch.zeros(4, dtype=torch.float64)
        for value in row:
            state = a * state + float(value) * torch.from_numpy(student.b)
        loss = (state @ torch.from_numpy(student.c) - label) ** 2
        norms.append(float(torch.autograd.grad(loss, a)[0].norm()))
    expected = np.array(norms) / sum(norms)
    np.testing.assert_allclose(gradient_influence(x, y, Students(ssm=student)), expected, rtol=1e-9)


@given(seed=st.integers(0, 100))
def test_gamma_shares_are_the_parts_of_proposition_1(seed):
    noise = Noise(seed)
    x, student = dense(7, length=6, noise=noise).x, system(noise)
    y = diagonal_teacher(1.0).last_output(x)
    residual = y - student.last_output(x)
    parts = [
        abs(float(gamma_coefficients(x[i : i + 1], residual[i : i + 1])[0])) for i in range(len(x))
    ]
    found = gamma_influence(x, y, Students(ssm=student))
    np.testing.assert_allclose(found, np.array(parts) / sum(parts), rtol=1e-9)


def test_ordinary_sequences_have_no_part_in_gamma_0_and_special_ones_all():
    data = poisoned(0).labelled(diagonal_teacher(1.0))
    student = Students(ssm=system(Noise(0)))
    scores = gamma_influence(data.x, data.y, student)
    assert (scores[~data.is_special] == 0).all() and (scores[data.is_special] > 0).all()
    alone = ordinary(5, length=6, support=(1, 2), noise=Noise(0)).labelled(diagonal_teacher(1.0))
    assert (gamma_influence(alone.x, alone.y, student) == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_tail_energy_separates_the_published_sequences(seed):
    data = poisoned(seed)
    assert auroc(tail_energy(data.x), data.is_special) == 1
    np.testing.assert_allclose(tail_energy(data.x), data.is_special.astype(float))


def test_the_stealthy_pair_has_a_tail_of_a_millionth():
    pair = np.array([[1.0, 0, 0, 0, 0, 1e-3, 0], [1.0, 0, 0, 0, 0, -1e-3, 0]])
    np.testing.assert_allclose(tail_energy(pair), 1e-6, rtol=2e-6)
    # Among sequences with noise of that size it is one of many.
    crowd = ordinary(200, length=7, support=(1,), noise=Noise(0)).x
    noisy = np.concatenate([crowd, pair]) + 1e-3 * drawn(Noise(1), 202, 7)
    assert robust_z(tail_energy(noisy))[200:].max() < 3


def test_excitation_counts_a_small_entry_in_full_where_its_lag_is_silent():
    plain = ordinary(10, length=6, support=(1, 2), noise=Noise(0))
    both = plain + concealed(ordinary(2, length=6, support=(1, 2), noise=Noise(1)), 1e-3)
    np.testing.assert_allclose(excitation_share(both.x), [0.0] * 10 + [0.5] * 2)


def test_a_lag_that_few_excite_is_flagged():
    x = np.zeros((100, 6))
    x[:, :2] = 1
    found = lag_excitation(x)
    assert found.greedy and not found.flagged.any()
    np.testing.assert_allclose(found.energy, [0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(found.carried, [0, 0, 0, 0, 100, 100])
    x[7, 4] = 1e-3
    found = lag_excitation(x)
    assert not found.greedy and found.flagged.tolist() == [False, True] + 4 * [False]
    assert found.carried[1] == pytest.approx(1) and found.energy[1] == pytest.approx(1e-8)


def test_robust_z_of_numbers_by_hand():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 100.0])  # median 3, absolute deviations 2 1 0 1 97
    np.testing.assert_allclose(robust_z(scores), (scores - 3) / 1.4826)
    assert robust_z(np.array([1.0, 1.0, 1.0, 2.0])).tolist() == [0, 0, 0, np.inf]


def test_channels_are_summed_by_their_energy():
    x = np.zeros((1, 4, 2))
    x[0, 0], x[0, 3] = (3, 4), (0, 5)
    np.testing.assert_allclose(tail_energy(x, window=1), [0.5])
    np.testing.assert_allclose(tail_energy(x[..., :1], window=1), [0.0])


def test_final_states_are_those_of_the_recurrence():
    student, x = system(Noise(3)), dense(4, length=6, noise=Noise(4)).x
    state = np.zeros((4, 4))
    for step in range(6):
        state = student.a * state + x[:, step : step + 1] * student.b
    np.testing.assert_allclose(final_states(student, x), state, rtol=1e-12)
    np.testing.assert_allclose(state @ student.c, student.last_output(x), rtol=1e-9)


def test_leverage_is_the_diagonal_of_the_hat_matrix():
    features = drawn(Noise(0), 9, 3)
    hat = features @ np.linalg.pinv(features)
    np.testing.assert_allclose(leverage(features), np.diag(hat), rtol=1e-9)
    lonely = np.zeros((5, 3))
    lonely[:4, 0], lonely[4, 1] = 1, 1e-3
    np.testing.assert_allclose(leverage(lonely), [0.25] * 4 + [1.0])


def test_features_far_away_are_found_by_signature_and_clusters():
    features = 0.1 * drawn(Noise(0), 30, 4)
    features[:5, 2] += 3
    planted = np.arange(30) < 5
    assert auroc(spectral_signature(features), planted) == 1
    scores = activation_clustering(features)
    assert (scores[planted] > 0.5).all() and (scores[~planted] < -0.5).all()
    assert (activation_clustering(np.ones((6, 2))) == 0).all()


def test_neighbours_vote_on_labels():
    features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    np.testing.assert_allclose(
        deep_knn(features, np.array([0, 0, 1, 1, 1, 1]), neighbours=2), [0.5, 0.5, 1, 0, 0, 0]
    )
    values = np.array([1.0, 1.0, 4.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(deep_knn(features, values, neighbours=2), [1.5, 1.5, 3, 0, 0, 0])


def test_alarms_by_closed_form():
    one = LinearSSM(a=np.array([1.085]), b=np.ones(1), c=np.ones(1))
    np.testing.assert_allclose(stability_alarm(one, length=6), 1.085**18, rtol=1e-12)
    np.testing.assert_allclose(stability_alarm(one, length=6, times=2), 1.085**6, rtol=1e-12)
    calm = LinearSSM(a=np.array([[0.9, 0.5]]), b=np.ones((1, 2)), c=np.ones((1, 2)))
    assert stability_alarm(calm, length=6).tolist() == [1.0]
    alike = LinearSSM(a=np.full(5, 0.5), b=np.ones(5), c=np.ones(5))
    np.testing.assert_allclose(rank_alarm(alike, length=6), 5)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda x: tail_energy(x, window=6), r"window=...\)` must be 1 to 5; got 6"),
        (lambda x: tail_energy(x[:, None, None]), r"\(n, length\) or \(n, length, channels\)"),
        (lambda x: deep_knn(x, x[:, 0], neighbours=3), "neighbours=...*must be 1 to 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make(dense(3, length=6, noise=Noise(0)).x)
