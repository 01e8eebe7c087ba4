"""Choices of examples: exact sizes, proportions of classes, and who depends on what."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.data.splitting import split_off_validation, stratified


@st.composite
def problems(draw):
    labels = draw(st.lists(st.integers(0, 5), min_size=1, max_size=80))
    return torch.tensor(labels), draw(st.integers(0, len(labels))), draw(st.integers(0, 99))


@given(problems())
def test_a_choice_and_its_rest_are_a_partition_of_the_right_sizes(problem):
    y, count, seed = problem
    chosen, rest = stratified(y, count, Noise(seed))
    assert len(chosen) == count
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(y)))


@given(problems())
def test_every_class_gets_its_share_rounded_down_or_up(problem):
    y, count, seed = problem
    chosen, _ = stratified(y, count, Noise(seed))
    for label in y.unique():
        share = Fraction(count * int((y == label).sum()), len(y))
        got = int((y[chosen] == label).sum())
        assert int(share) <= got <= -int(-share // 1), (got, share)


def test_choices_within_a_class_are_uniform():
    y = torch.tensor([0] * 6 + [1] * 2)
    counts = torch.zeros(8)
    for seed in range(2000):
        chosen, _ = stratified(y, 4, Noise(seed))
        counts[chosen] += 1
    # Each example is chosen half of the time; 5 standard deviations of a binomial are 0.056.
    assert (counts / 2000 - 0.5).abs().max() < 0.056


def data(n=40):
    x = torch.arange(n).float().div(n).reshape(n, 1, 1)
    return Split(x, torch.arange(n) % 4)


def split(validation=8, train_limit=None, seed=0, training=None, **changes):
    settings = {"num_classes": 4, "bounds": (0.0, 1.0), "origin": {"remarks": ["said before"]}}
    return split_off_validation(
        "Mine",
        data() if training is None else training,
        data(12),
        validation=validation,
        train_limit=train_limit,
        noise=Noise(seed),
        **(settings | changes),
    )


def rows(part):
    return [round(40 * value) for value in part.x.flatten().tolist()]


def test_training_keeps_the_order_of_the_files_and_loses_only_validation():
    made = split()
    assert rows(made.train) == sorted(rows(made.train))
    assert sorted(rows(made.train) + rows(made.validation)) == list(range(40))
    assert made.validation.y.bincount().tolist() == [2, 2, 2, 2]
    assert torch.equal(made.test.x, data(12).x)
    assert made.origin["examples"] == {"train": 32, "validation": 8, "test": 12}


def test_the_noise_alone_chooses():
    assert rows(split(seed=1).validation) == rows(split(seed=1).validation)
    assert rows(split(seed=1).validation) != rows(split(seed=2).validation)


def test_a_larger_limit_keeps_the_examples_of_a_smaller_one_and_leaves_validation_alone():
    small, large, whole = split(train_limit=5), split(train_limit=20), split()
    assert len(small.train) == 5 and len(large.train) == 20
    assert set(rows(small.train)) < set(rows(large.train)) < set(rows(whole.train))
    assert rows(small.validation) == rows(whole.validation)
    assert small.origin["remarks"] == [
        "said before",
        "Trains on a random 5 of 32 examples (train_limit).",
    ]


@pytest.mark.parametrize("validation", [40, 41, 1000])
def test_validation_must_leave_examples_to_train_on(validation):
    message = rf"`Mine\(validation=...\)` must leave .* the 40 there are; got {validation}"
    with pytest.raises(ValueError, match=message):
        split(validation=validation)


def test_a_limit_without_effect_is_refused():
    with pytest.raises(
        ValueError, match=r"must be at most the 32 examples left beside 8 .* got 33"
    ):
        split(train_limit=33)


def test_rows_in_messages_are_those_of_the_files():
    training = data()
    training.x[29] = float("nan")
    with pytest.raises(ValueError, match=r"Values in the training data of `Mine` .* row 29"):
        split(training=training)


def test_no_training_data_are_refused():
    with pytest.raises(ValueError, match="The training data of `Mine` must not be empty"):
        split(training=data().take(slice(0)))
