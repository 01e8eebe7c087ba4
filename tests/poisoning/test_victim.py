"""Arms of the victim: alike but for the poison, resumable, and compared in pairs."""

import dataclasses
import json

import pytest
import scipy.stats
import torch

from robustssm.attacks.threat import Threat
from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams
from robustssm.data.base import Split
from robustssm.data.batches import epoch_order
from robustssm.data.digits import Digits
from robustssm.models.presets import victim
from robustssm.models.tokens import Patches
from robustssm.poisoning import brewing_settings
from robustssm.poisoning.brewing import Brewing
from robustssm.poisoning.brewing_differences import differences, student_interval
from robustssm.poisoning.brewing_study import brewing_study
from robustssm.poisoning.targets import judged
from robustssm.poisoning.victim import Victim, joined, shares, signs, train
from robustssm.records.brewing import ArmRecord, BrewingResult
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule

CPU = Placement("cpu")
TINY = Victim(
    dataset=Digits(test=40, validation=1600),
    model=victim("lru", tokens=Patches(side=4), d_model=8, num_layers=1, d_state=4),
    brewing=Brewing(
        threat=Threat(eps=0.2), poisons=24, targets=12, group_size=4, iterations=2, restarts=1
    ),
    clean=40,
    optimizer=AdamW(lr=3e-2),
    epochs=6,
    extra_epochs=2,
    batch_size=8,
)


def data() -> Split:
    return TINY.dataset.read(data_dir=None, noise=Noise(0)).train


def trained(given: Split, settings: Victim = TINY, **more):
    return train(settings, given, num_classes=10, streams=Streams(0), placement=CPU, **more)


def same(first, second) -> bool:
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(p, theirs[name]) for name, p in ours.items())


def test_shares_are_disjoint_and_the_seed_decides_them():
    train_split = Split(torch.arange(100).float()[:, None], torch.zeros(100, dtype=torch.int64))
    first, second, other = (shares(train_split, TINY, noise=Noise(n)) for n in (0, 0, 1))
    assert len(first.clean) == 40 and len(first.base) == 24
    assert len(set(first.both.x.flatten().tolist())) == 64
    assert torch.equal(first.both.x, second.both.x)
    assert not torch.equal(first.both.x, other.both.x)


def test_stored_bytes_become_the_floats_that_models_see():
    pixels = Split(torch.arange(64, dtype=torch.uint8)[:, None], torch.zeros(64, dtype=torch.int64))
    drawn = shares(pixels, TINY, noise=Noise(0))
    assert sorted(drawn.both.x.flatten().tolist()) == [
        float(torch.tensor(n / 255.0)) for n in range(64)
    ]


def test_arms_share_the_clean_subset_and_the_base_bit_for_bit():
    drawn = shares(data(), TINY, noise=Noise(0))
    noisy = signs(drawn.base.x, TINY.brewing, noise=Noise(1))
    clean = drawn.arm(None, base_kept=True)
    for added in (drawn.base.x, noisy):
        arm = drawn.arm(added, base_kept=True)
        assert torch.equal(arm.x[:64], clean.x) and torch.equal(arm.y[:64], clean.y)
        assert torch.equal(arm.x[64:], added) and torch.equal(arm.y[64:], drawn.base.y)
    replaced = drawn.arm(noisy, base_kept=False)
    assert torch.equal(replaced.x[:40], drawn.clean.x) and torch.equal(replaced.x[40:], noisy)
    assert torch.equal(replaced.y, clean.y)


def test_arms_visit_what_they_share_in_the_same_order():
    short, long = (epoch_order(n, Streams(0).noise("order", 3)) for n in (64, 88))
    assert torch.equal(long[long < 64], short)


def test_arms_start_alike_and_one_step_on_the_same_data_leaves_them_alike():
    drawn = shares(data(), TINY, noise=Noise(0))
    first, second = trained(drawn.both), trained(drawn.arm(None, base_kept=True))
    assert same(first, second)
    noisy = trained(drawn.arm(drawn.base.x + 0.01, base_kept=False))
    assert not same(first, noisy) and noisy.steps == first.steps


def test_duplication_alone_is_the_clean_data_with_the_base_twice():
    drawn = shares(data(), TINY, noise=Noise(0))
    duplicated = trained(drawn.arm(drawn.base.x, base_kept=True))
    twice = trained(joined(joined(drawn.clean, drawn.base), drawn.base))
    assert same(duplicated, twice) and duplicated.examples == 88
    once = Split(drawn.base.x, drawn.base.y)
    everything = trained(joined(joined(once, once), joined(once, once)))
    alone = dataclasses.replace(drawn, clean=joined(once, once))
    assert same(trained(alone.arm(once.x, base_kept=True)), everything)


def test_sign_noise_moves_every_entry_by_eps_and_stays_in_range():
    x = Noise(0).uniform(5, 1, 8, 8)
    moved = signs(x, TINY.brewing, noise=Noise(1))
    inside = (x > 0.2) & (x < 0.8)
    torch.testing.assert_close((moved - x).abs()[inside], torch.full((int(inside.sum()),), 0.2))
    assert 0 <= float(moved.min()) and float(moved.max()) <= 1
    ups = float((moved > x).float().mean())
    assert 0.4 < ups < 0.6


def test_an_arm_trains_on_at_the_last_rate_until_its_loss_is_matched():
    given = data().take(slice(60))
    plain = trained(given)
    assert plain.epochs == 6 and plain.matched
    assert plain.train_loss == pytest.approx(
        float(judged(plain.model, given, batch_size=7)[0].mean()), rel=1e-5
    )
    enough = trained(given, level=plain.train_loss)
    assert enough.epochs == 6 and enough.matched and same(plain, enough)
    never = trained(given, level=0.0)
    assert never.epochs == 8 and not never.matched and 6 * never.steps == 8 * plain.steps
    held = dataclasses.replace(TINY, schedule=Schedule(final=1.0))
    longer = dataclasses.replace(held, epochs=8, extra_epochs=0)
    assert same(trained(given, held, level=0.0), trained(given, longer))


def test_a_trained_arm_is_kept_and_taken_up(tmp_path):
    given = data().take(slice(60))
    first = trained(given, keep=tmp_path / "arm")
    again = trained(given.take(slice(30)), keep=tmp_path / "arm")  # not trained anew
    assert same(first, again)
    for name in ("examples", "epochs", "steps", "train_loss", "matched"):
        assert getattr(again, name) == getattr(first, name)


@pytest.fixture(scope="module")
def result() -> BrewingResult:
    return brewing_study(TINY, [0, 1], placement=CPU)


def test_a_study_has_every_arm_and_every_control_in_pairs(result):
    assert [arm.arm for arm in result.arms] == 2 * list(TINY.arms)
    assert {arm.seed for arm in result.arms} == {0, 1}
    for arm in result.arms:
        assert arm.examples == (64 if arm.arm == "clean" else 88)
        assert len(arm.correct) == 28 and len(arm.correct_targets) == 12
        assert arm.accuracy == pytest.approx(arm.correct.count("1") / 28)
        whole = (arm.correct + arm.correct_targets).count("1") / 40
        assert arm.test_accuracy == pytest.approx(whole)
        perturbed = arm.arm in ("poisoned", "noise", "unregularised")
        assert (arm.tail_energy is not None) == perturbed
        assert arm.largest == pytest.approx(0.2 if perturbed else 0.0, abs=1e-6)
    assert result.uniform_tail == 0.5
    for control in ("clean", "noise", "duplicated", "unregularised"):
        found = result.difference(control)
        pairs = zip(result.of("poisoned"), result.of(control), strict=True)
        expected = [a.accuracy - b.accuracy for a, b in pairs]
        assert list(found.differences) == expected
        assert found.low is not None and found.low <= found.mean <= found.high
        assert (found.gained - found.lost) / 28 == pytest.approx(sum(expected))
    assert {arm: len(seeds) for arm, seeds in result.brewed.items()} == {
        "poisoned": 2,
        "unregularised": 2,
    }
    assert all(r.penalty == 0 for groups in result.brewed["unregularised"] for r in groups)
    with pytest.raises(KeyError, match="does not compare"):
        result.difference("nothing")


def test_a_result_survives_json(result):
    again = BrewingResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again == dataclasses.replace(result, settings=again.settings)
    assert again.settings["brewing"]["threat"]["eps"] == 0.2


def test_a_killed_study_goes_on_to_the_same_result(result, tmp_path):
    def kill(doing: str, share: float) -> None:
        if doing == "seed 0: brewing, poisoned" and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brewing_study(TINY, [0], placement=CPU, directory=tmp_path, progress=kill)
    kept = sorted(p.name for p in (tmp_path / "seed_0" / "poisoned" / "groups").iterdir())
    assert kept and len(kept) < len(result.brewed["poisoned"][0])
    resumed = brewing_study(TINY, [0], placement=CPU, directory=tmp_path)
    assert resumed.arms == result.arms[: len(TINY.arms)]
    assert all(resumed.brewed[arm][0] == result.brewed[arm][0] for arm in result.brewed)
    changed = dataclasses.replace(TINY, epochs=7)
    with pytest.raises(ValueError, match="other settings"):
        brewing_study(changed, [0], placement=CPU, directory=tmp_path)


def test_another_draw_may_serve_for_brewing(result):
    other = dataclasses.replace(TINY, surrogate="other", arms=("poisoned",))
    found = brewing_study(other, [0], placement=CPU)
    assert [arm.arm for arm in found.arms] == ["clean", "poisoned"]
    clean = found.arms[0]
    assert clean.train_loss == result.arms[0].train_loss  # the victim's own training is the same
    assert found.brewed["poisoned"][0] != result.brewed["poisoned"][0]
    assert found.difference("clean").low is None


def arm(name: str, seed: int, correct: str, *, matched: bool = True) -> ArmRecord:
    share = correct.count("1") / len(correct)
    return ArmRecord(
        seed=seed,
        arm=name,
        examples=1,
        epochs=1,
        steps=1,
        train_loss=0.1,
        shared_loss=0.1,
        matched=matched,
        accuracy=share,
        target_accuracy=share,
        high_loss_accuracy=None,
        test_accuracy=share,
        test_loss=0.1,
        correct=correct,
        correct_targets=correct,
    )


def test_differences_count_examples_both_ways():
    arms = [arm("clean", 0, "1100"), arm("poisoned", 0, "1011")]
    arms += [arm("clean", 7, "1111"), arm("poisoned", 7, "0000", matched=False)]
    found = {each.measure: each for each in differences(arms)}
    assert found["accuracy"].differences == (0.25, -1.0)
    assert (found["accuracy"].lost, found["accuracy"].gained) == (5, 2)
    assert found["accuracy"].matched_seeds == 1
    assert (found["train_loss"].mean, found["train_loss"].lost) == (0.0, 0)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_interval_is_students(count, level):
    values = Noise(count).normal(count, dtype=torch.float64).tolist()
    expected = scipy.stats.t.interval(
        level, count - 1, loc=sum(values) / count, scale=scipy.stats.sem(values)
    )
    assert student_interval(values, level) == pytest.approx(expected, rel=1e-6)
    assert student_interval(values[:1]) is None


def test_settings_of_three_sizes_are_there_and_json_able():
    for structure in ("s4d", "lru", "mamba2"):
        for make in ("small", "mnist14", "published"):
            value = getattr(brewing_settings, make)(structure)
            assert value.brewing.poisons > 0 and value.schedule.factor(1.0) > 0
    full = brewing_settings.PUBLISHED
    assert (full.clean, full.brewing.poisons, full.brewing.targets) == (10_000, 10_000, 3000)


def test_bad_settings_are_refused():
    small = dataclasses.replace
    with pytest.raises(ValueError, match="name each arm once"):
        small(TINY, arms=("clean", "clean"))
    with pytest.raises(ValueError, match="leave out 'duplicated'"):
        small(TINY, base_kept=False)
    with pytest.raises(ValueError, match="factor above 0"):
        small(TINY, schedule=Schedule(final=0.0))
    with pytest.raises(ValueError, match="at most the 157 training examples"):
        brewing_study(small(TINY, clean=150), [0], placement=CPU)
    with pytest.raises(ValueError, match="different numbers"):
        brewing_study(TINY, [1, 1], placement=CPU)
    wide = small(TINY.brewing, threat=Threat(eps=0.1, bounds=(-1, 1)))
    with pytest.raises(ValueError, match="be the range of the data"):
        brewing_study(small(TINY, brewing=wide), [0], placement=CPU)
    everyone = small(TINY.brewing, targets=40, group_size=10)
    with pytest.raises(ValueError, match="leave test examples"):
        brewing_study(small(TINY, brewing=everyone), [0], placement=CPU)
