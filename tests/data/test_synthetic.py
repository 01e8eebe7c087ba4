"""Sequences made by rule: the rule is right, also under attack; short memories are not."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise, Streams
from robustssm.data.adding import Adding
from robustssm.data.copying import Copying
from robustssm.data.tones import Tones

KINDS = (Copying, Adding, Tones)
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.lower())


def splits(dataset, seed=0):
    return dataset.read(data_dir=None, noise=Noise(seed))


def drawn(dataset, count=64, seed=3):
    noise = Streams(seed).examples("test", indices=torch.arange(count))
    return dataset.draw(noise, count)


SMALL = (
    st.builds(
        Copying,
        length=st.integers(24, 40),
        items=st.integers(1, 3),
        levels=st.integers(2, 4),
        span=st.integers(3, 24),
        jitter=st.floats(0, 0.12),
    ),
    st.builds(
        Adding,
        length=st.integers(24, 40),
        classes=st.integers(2, 5),
        span=st.integers(2, 24),
        margin=st.floats(0.01, 0.19),
    ),
)


@given(dataset=st.one_of(*SMALL), seed=st.integers(0, 1000))
def test_the_rule_is_right_on_every_example_whatever_the_settings(dataset, seed):
    x, y = drawn(dataset, seed=seed)
    assert torch.equal(dataset.rule(x), y)
    assert x.shape == (64, dataset.length, 2) and x.dtype == torch.float32
    assert 0 <= float(x.min()) and float(x.max()) <= 1


@each
def test_the_rule_is_right_at_the_defaults_and_classes_are_balanced(kind):
    read = splits(kind())
    for part in (read.train, read.test):
        assert torch.equal(kind().rule(part.x), part.y)
        share = part.y.bincount(minlength=read.num_classes) / len(part)
        assert (share * read.num_classes - 1).abs().max() < 0.25


@given(dataset=st.one_of(*SMALL), seed=st.integers(0, 1000))
def test_the_rule_withstands_any_perturbation_below_its_radius(dataset, seed):
    x, y = drawn(dataset, seed=seed)
    worst = Noise(seed).signs(64, dataset.length) * (dataset.radius * 0.999 - 1e-6)
    for shift in (worst, worst.abs(), -worst.abs()):
        moved = x.clone()
        moved[..., 0] += shift
        assert torch.equal(dataset.rule(moved), y)


@pytest.mark.parametrize("dataset", [Copying(jitter=0.2), Adding(margin=0.02)], ids=repr)
def test_the_radius_is_tight(dataset):
    x, y = drawn(dataset, 500)
    up = x.clone()
    up[..., 0] += dataset.radius * 1.5
    wrong = (dataset.rule(up) != y).float().mean()
    assert 0.02 < wrong < 1


def test_the_certified_radius_of_tones_holds_against_an_attack_on_the_rule():
    dataset = Tones()
    x, y = drawn(dataset, 40)
    radii = dataset.radii(x, y)
    for example in range(0, 40, 8):
        one = slice(example, example + 1)
        for share, held in ((0.99, True), (6.0, False)):
            threat = Threat(norm="linf", eps=float(radii[example]) * share, bounds=(-2, 2))
            x_adv = PGD(steps=15, step_size=0.2)(
                lambda z: dataset._levels(z).float(), x[one], y[one], threat=threat, noise=Noise(1)
            )
            assert bool(dataset.rule(x_adv) == y[one]) is held


def test_the_reach_of_two_filters_bounds_every_sign_pattern_and_is_nearly_attained():
    dataset = Tones(length=32, classes=3)
    reach = dataset._reach()
    signs = Noise(0).signs(2000, 32).double()[..., None]
    moves = dataset._levels(signs)
    assert (moves[:, 0] + moves[:, 1] <= reach[0, 1]).all()
    t = torch.arange(32, dtype=torch.float64)
    best = 0.0
    for p in torch.linspace(0, 2 * math.pi, 33, dtype=torch.float64):
        for q in torch.linspace(0, 2 * math.pi, 33, dtype=torch.float64):
            one, other = (
                torch.cos(2 * math.pi * f * t + phase)
                for f, phase in zip(dataset.pitches[:2], (p, q), strict=True)
            )
            move = dataset._levels((one + other).sign()[None, :, None])[0]
            best = max(best, float(move[0] + move[1]))
    assert 0.99 * float(reach[0, 1]) < best <= float(reach[0, 1])


def fitted(dataset, features):
    read = splits(dataset)
    model = LogisticRegression(C=0.1, max_iter=300)
    model.fit(features(read.train.x).numpy(), read.train.y.numpy())
    return model.score(features(read.test.x).numpy(), read.test.y.numpy()), 1 / read.num_classes


@each
def test_the_end_of_a_sequence_says_nothing(kind):
    """Within three standard errors of chance, on 2000 test examples."""
    reached, chance = fitted(kind(test=2000), lambda x: x[:, -x.shape[1] // 4 :].flatten(1))
    assert abs(reached - chance) < 3 * math.sqrt(chance * (1 - chance) / 2000)


@pytest.mark.parametrize("kind, most", [(Copying, 0.32), (Adding, 0.32), (Tones, 0.45)])
def test_a_line_through_the_whole_sequence_is_far_from_the_rule(kind, most):
    reached, _ = fitted(kind(), lambda x: x.flatten(1))
    assert reached < most


def test_marks_decide_and_the_order_of_copied_items_counts():
    dataset = Copying(length=8, items=2, levels=2, span=8, jitter=0.0)
    x = torch.full((1, 8, 2), 0.5)
    x[..., 1] = 0
    x[0, 2], x[0, 5] = torch.tensor([0.75, 1.0]), torch.tensor([0.25, 1.0])
    assert dataset.rule(x).tolist() == [0b10]
    assert dataset.rule(x.flip(1)).tolist() == [0b01]


@each
def test_more_examples_begin_with_the_fewer(kind):
    few, many = splits(kind(train=30, validation=10, test=20)), splits(kind(test=50))
    assert torch.equal(many.test.x[:20], few.test.x)
    pool = torch.cat([few.train.x, few.validation.x])
    everything = torch.cat([many.train.x, many.validation.x])
    assert all((everything == row).flatten(1).all(1).any() for row in pool)


@each
def test_draws_do_not_depend_on_the_batch(kind):
    dataset = kind()
    noise = Streams(0).examples("part", indices=torch.arange(10))
    x, y = dataset.draw(noise, 10)
    rows = torch.tensor([7, 2])
    again, labels = dataset.draw(Streams(0).examples("part", indices=rows), 2)
    assert torch.equal(again, x[rows]) and torch.equal(labels, y[rows])


REFUSED = {
    "no room for marks": (Copying, {"items": 5, "span": 4}, "items <= span <= length"),
    "span beyond the end": (Copying, {"span": 200}, "items <= span <= length"),
    "levels that meet": (Copying, {"jitter": 0.25}, r"below 1 / \(2 levels\) = 0.25"),
    "adding beyond the end": (Adding, {"span": 200}, "at most the length 128; got 200"),
    "bins of nothing": (Adding, {"margin": 0.25}, "half the width of a bin.*0.25; got 0.25"),
    "falling pitches": (Tones, {"lowest": 0.2, "highest": 0.1}, "lowest < highest; got 0.2, 0.1"),
    "aliases": (Tones, {"highest": 0.3}, "less than 0.25"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_make_no_task_are_refused(case):
    kind, settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_the_origin_tells_one_drawing_from_another():
    one, other = (splits(dataclasses.replace(Adding(), margin=m)) for m in (0.1, 0.11))
    assert one.origin["files"] != other.origin["files"]
    assert splits(Adding(margin=0.1), seed=4).origin["files"] == one.origin["files"]
