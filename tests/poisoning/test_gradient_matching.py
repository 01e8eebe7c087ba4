"""Gradient matching: the objective against finite differences, and what a brewing must keep."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import nn

from robustssm.attacks.threat import Threat
from robustssm.core.errors import CorruptFile, Inapplicable
from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.models.presets import victim
from robustssm.models.tokens import LegacyRaster, Patches, Raster
from robustssm.poisoning.augmented import ShiftFlip
from robustssm.poisoning.brewing import Brewing, reading_order, tail_energy, tokens_of
from robustssm.poisoning.brewing_record import BrewedGroups, fingerprint
from robustssm.poisoning.gradient_matching import brew, sign_adam
from robustssm.poisoning.matching import Matching, loss_gradient
from robustssm.poisoning.targets import choose_targets, judged

SHAPE = (1, 4, 4)
TINY = Brewing(
    threat=Threat(eps=0.1),
    poisons=10,
    targets=8,
    group_size=3,
    iterations=6,
    restarts=1,
    tail=0.1,
)


def made(structure: str = "s4d", *, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
    config = victim(structure, d_model=4, num_layers=1, d_state=4, dropout=dropout)
    model = config.build(shape=SHAPE, num_classes=3, noise=Noise(0).fork("model"))
    return model.to(dtype).eval()


def drawn(count: int, name: str, *, dtype: torch.dtype = torch.float32) -> Split:
    noise = Noise(1).fork(name)
    return Split(noise.uniform(count, *SHAPE).to(dtype), noise.integers(count, high=3))


def matching(model: nn.Module, settings: Brewing, count: int = 5) -> Matching:
    base, aimed = (drawn(count, n, dtype=torch.float64) for n in ("base", "aimed"))
    wanted = tuple(-g for g in loss_gradient(model, aimed.x, aimed.y))
    weight = settings.tail * reading_order(SHAPE).ramp() / base.x.numel()
    return Matching(model, base.x, base.y, wanted, weight, settings)


def objective(problem: Matching, x_adv: torch.Tensor) -> float:
    return 1 - problem.similarity(x_adv) + problem.penalty(x_adv)


def brewed(settings: Brewing = TINY, *, seed: int = 0, model: nn.Module | None = None, **more):
    model = model or made(dtype=torch.float32)
    targets = choose_targets(model, drawn(12, "test"), settings, noise=Noise(3))
    return brew(model, drawn(10, "base"), targets, settings, noise=Noise(seed), **more)


@pytest.mark.parametrize("structure", ["s4d", "lru", "mamba2"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_gradient_is_that_of_the_objective(structure, micro_batch):
    settings = dataclasses.replace(TINY, tail=3.0, micro_batch=micro_batch)
    problem = matching(made(structure), settings)
    x_adv = problem.x + 0.1 * Noise(5).normal(like=problem.x)
    gradient = problem.gradient(x_adv, None)
    step = 1e-5
    for number in range(3):
        direction = Noise(6).fork(number).normal(like=problem.x)
        ahead, behind = (objective(problem, x_adv + s * step * direction) for s in (1, -1))
        measured = (ahead - behind) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(measured, rel=1e-5)


def test_the_objective_is_what_its_formula_says():
    problem = matching(made(), dataclasses.replace(TINY, tail=2.0))
    x_adv = problem.x + 0.05
    found = nn.utils.parameters_to_vector(loss_gradient(problem.model, x_adv, problem.y))
    wanted = nn.utils.parameters_to_vector(problem.wanted)
    cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=0)
    assert problem.similarity(x_adv) == pytest.approx(float(cosine), rel=1e-12)
    assert problem.penalty(x_adv) == pytest.approx(2.0 * 0.5 * 0.05**2)  # mean of the ramp: 1/2


@limits(max_examples=8)
@given(shift=st.sampled_from([0.0, 1.5]), flip=st.booleans(), size=st.integers(1, 6))
def test_parts_give_the_gradient_of_the_whole(shift, flip, size):
    settings = dataclasses.replace(TINY, augmentation=ShiftFlip(shift=shift, flip=flip))
    whole = matching(made(), settings)
    parts = matching(made(), dataclasses.replace(settings, micro_batch=size))
    x_adv = whole.x + 0.05
    torch.testing.assert_close(
        parts.gradient(x_adv, Noise(9)), whole.gradient(x_adv, Noise(9)), rtol=1e-9, atol=1e-14
    )


def test_the_gradient_goes_through_the_augmentation():
    settings = dataclasses.replace(TINY, augmentation=ShiftFlip(shift=1.5, flip=True))
    problem, noise = matching(made(), settings), Noise(4)
    moved = settings.augmentation(problem.x, noise.rows(5))
    plain = dataclasses.replace(problem, x=moved, settings=TINY)
    x_adv = problem.x + 0.03 * Noise(5).normal(like=problem.x)
    seen = settings.augmentation(x_adv, noise.rows(5)).requires_grad_()
    inner = plain.gradient(seen.detach(), None) - 2 * problem.weight * (seen.detach() - moved)
    point = x_adv.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        settings.augmentation(point, noise.rows(5)), point, grad_outputs=inner
    )
    expected = expected + 2 * problem.weight * (x_adv - problem.x)
    torch.testing.assert_close(problem.gradient(x_adv, noise), expected, rtol=1e-9, atol=1e-14)


def test_sign_adam_is_adam_on_signs():
    x = Noise(0).uniform(3, 4, low=0.4, high=0.6, dtype=torch.float64)
    settings = Brewing(threat=Threat(eps=0.3), iterations=8, step_size=0.01)
    aim = Noise(1).uniform(3, 4, dtype=torch.float64)
    found = sign_adam(lambda z, _: z - aim, x, x, settings)
    point = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([point], lr=1.0)
    for iteration in range(8):
        optimizer.param_groups[0]["lr"] = settings.step(iteration)
        point.grad = (point.detach() - aim).sign()
        optimizer.step()
    torch.testing.assert_close(found, point.detach(), rtol=1e-12, atol=0)


def test_steps_shrink_when_they_were_published_to():
    steps = [Brewing().step(i) for i in range(250)]
    drops = [i for i in range(1, 250) if steps[i] < steps[i - 1]]
    assert drops == [93, 156, 218]
    assert steps[0] == pytest.approx(0.385 * 16 / 255)
    assert steps[-1] == pytest.approx(steps[0] / 1000)


def test_poisons_stay_in_the_ball_and_in_the_range_and_match_better():
    model = made(dropout=0.1, dtype=torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    settings = dataclasses.replace(TINY, iterations=15, tail=0.0, threat=Threat(eps=0.3))
    base, groups = drawn(10, "base"), brewed(settings, model=model)
    assert torch.equal(torch.cat([g.base for g in groups]), torch.arange(10))
    for group in groups:
        delta = group.x.double() - base.x[group.base].double()
        assert 0.2 < float(delta.abs().max()) <= 0.3 + 1e-7
        assert 0 <= float(group.x.min()) and float(group.x.max()) <= 1
        assert group.record.similarity > group.record.similarity_before
    gained = [g.record.similarity - g.record.similarity_before for g in groups]
    assert sum(gained) / len(gained) > 0.01
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_a_step_on_the_poisons_raises_the_loss_of_their_targets():
    model = made(dtype=torch.float32)
    targets = choose_targets(model, drawn(12, "test"), TINY, noise=Noise(3))
    settings = dataclasses.replace(TINY, tail=0.0, iterations=15, threat=Threat(eps=0.5))
    groups = brew(model, drawn(10, "base"), targets, settings, noise=Noise(0))
    y = drawn(10, "base").y
    for group, found in zip(targets.groups, groups, strict=True):
        assert found.record.similarity > 0
        aimed = targets.examples.take(group.targets)
        moved = copy.deepcopy(model).double()
        before, _ = judged(moved, aimed, batch_size=99)
        step = loss_gradient(moved, found.x.double(), y[found.base])
        with torch.no_grad():
            for parameter, g in zip(moved.parameters(), step, strict=True):
                parameter -= 1e-4 * g
        after, _ = judged(moved, aimed, batch_size=99)
        assert float(after.mean()) > float(before.mean())


def test_more_restarts_are_never_worse_and_begin_alike():
    one = brewed()
    three = brewed(dataclasses.replace(TINY, restarts=3))
    for few, many in zip(one, three, strict=True):
        assert many.record.objectives[0] == few.record.objectives[0]
        kept = 1 - many.record.similarity + many.record.penalty
        assert kept == min(many.record.objectives) <= min(few.record.objectives)
    assert any(not torch.equal(a.x, b.x) for a, b in zip(one, three, strict=True))


def test_the_regulariser_moves_energy_to_the_tail():
    order, base = reading_order(SHAPE), drawn(10, "base").x
    energies = []
    for tail in (0.0, 0.3, 30.0):
        settings = dataclasses.replace(TINY, tail=tail, iterations=30, group_size=8)
        x_adv = torch.cat([group.x for group in brewed(settings)])
        energies.append(tail_energy(x_adv - base, order))
    assert energies[0] < energies[1] < energies[2]
    assert energies[2] > 0.9


def test_brewing_is_repeatable_and_depends_on_its_noise():
    first, second, other = brewed(), brewed(), brewed(seed=1)
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert [a.record for a in first] == [b.record for b in second]
    assert not any(torch.equal(a.x, b.x) for a, b in zip(first, other, strict=True))


def test_dropout_draws_from_the_noise_and_leaves_other_modes_alone():
    settings = dataclasses.replace(TINY, dropout=True)
    model = made(dropout=0.5)
    problem = matching(model, settings)
    x_adv = problem.x + 0.05
    with_masks = [problem.gradient(x_adv, Noise(seed)) for seed in (0, 0, 1)]
    assert torch.equal(with_masks[0], with_masks[1])
    assert not torch.equal(with_masks[0], with_masks[2])
    off = dataclasses.replace(problem, settings=TINY)
    torch.testing.assert_close(off.gradient(x_adv, Noise(0)), off.gradient(x_adv, None))
    assert not any(module.training for module in model.modules())


def test_a_killed_brewing_goes_on_to_the_same_poisons(tmp_path):
    model = made(dtype=torch.float32)
    targets = choose_targets(model, drawn(12, "test"), TINY, noise=Noise(3))
    mark = fingerprint(model, drawn(10, "base"), targets, TINY, Noise(0))
    store = BrewedGroups(tmp_path, mark)
    told: list[int] = []

    def finish(group, *, last: int) -> None:
        store.write(group)
        told.append(group.record.group)
        if group.record.group == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brewed(finished=lambda g: finish(g, last=1))
    resumed = brewed(done=store.read(), finished=lambda g: finish(g, last=99))
    assert told == list(range(len(targets.groups)))
    whole = brewed()
    for a, b, kept in zip(resumed, whole, store.read(), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.base, b.base) and a.record == b.record
        assert torch.equal(kept.x, b.x) and kept.record == b.record


def test_kept_groups_of_another_brewing_or_damaged_ones_are_refused(tmp_path):
    model = made(dtype=torch.float32)
    targets = choose_targets(model, drawn(12, "test"), TINY, noise=Noise(3))
    base = drawn(10, "base")
    mark = fingerprint(model, base, targets, TINY, Noise(0))
    brewed(finished=BrewedGroups(tmp_path, mark).write)
    other_model = made("lru", dtype=torch.float32)
    for changed in (
        fingerprint(other_model, base, targets, TINY, Noise(0)),
        fingerprint(model, drawn(10, "other"), targets, TINY, Noise(0)),
        fingerprint(model, base, targets, dataclasses.replace(TINY, tail=0.2), Noise(0)),
        fingerprint(model, base, targets, TINY, Noise(1)),
    ):
        with pytest.raises(ValueError, match="must be of this brewing"):
            BrewedGroups(tmp_path, changed).read()
    damaged = tmp_path / "group_0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(CorruptFile, match="group_0001"):
        BrewedGroups(tmp_path, mark).read()


def test_targets_of_high_loss_are_correct_ones_and_groups_share_everything_out():
    model = made()
    test = drawn(40, "test")
    settings = dataclasses.replace(TINY, targets=30, group_size=4, poisons=23, high_loss=0.2)
    targets = choose_targets(model, test, settings, noise=Noise(0))
    with torch.no_grad():
        logits = model(test.x[targets.rows].double())
    y = test.y[targets.rows]
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    correct = logits.argmax(1) == y
    assert int(targets.high_loss.sum()) == 6 and correct[targets.high_loss].all()
    assert losses[targets.high_loss].min() >= losses[correct & ~targets.high_loss].max()
    assert len(set(targets.rows.tolist())) == 30
    every = torch.cat([group.targets for group in targets.groups])
    assert every.sort().values.tolist() == list(range(30))
    base = torch.cat([group.base for group in targets.groups])
    assert base.tolist() == list(range(23))
    assert sum(len(g.base) for g in targets.groups if g.high_loss) == 12  # half of 23, rounded
    assert [len(g.targets) for g in targets.groups] == [4, 2, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("tokens", [Raster(), Patches(side=2), LegacyRaster()])
def test_the_ramp_follows_the_tokens(tokens):
    shape = (3, 4, 6)
    order = reading_order(shape, tokens=tokens)
    read = tokens.tokens(order.step[None].float())[0]  # as the model would read it
    assert torch.equal(read, torch.arange(len(read))[:, None].expand_as(read).float())
    ramp = tokens.tokens(order.ramp()[None])[0]
    assert float(ramp[0, 0]) == 1 and float(ramp[-1, 0]) == 0 and (ramp.diff(dim=0) < 0).all()
    share = {Raster(): 1 / 4, Patches(side=2): 1 / 6, LegacyRaster(): 1 / 4}[tokens]
    assert float(order.tail().double().mean()) == pytest.approx(share)
    assert tail_energy(torch.full((2, *shape), -0.3), order) == pytest.approx(share**0.5)


def test_rows_and_sequences_have_ramps_of_their_own():
    rows = reading_order((3, 4, 6), ramp="rows")
    assert torch.equal(rows.step[:, :, 5], torch.arange(4).expand(3, 4)) and rows.last == 1
    sequence = reading_order((64, 2))
    assert torch.equal(sequence.step, torch.arange(64)[:, None].expand(64, 2))
    assert sequence.last == 2
    with pytest.raises(ValueError, match=r"Brewing\(ramp=.*sequences"):
        reading_order((64, 2), ramp="rows")
    config = victim("mamba2", tokens=Patches(side=2), d_model=4, num_layers=1)
    model = config.build(shape=SHAPE, num_classes=3, noise=Noise(0))
    assert tokens_of(model) == Patches(side=2) and tokens_of(nn.Identity()) == Raster()


def test_a_perturbation_of_nothing_has_no_tail():
    assert tail_energy(torch.zeros(2, *SHAPE), reading_order(SHAPE)) == 0


def test_shifts_of_whole_pixels_move_and_mirrors_mirror():
    x = Noise(0).uniform(64, 2, 5, 5, dtype=torch.float64)
    mirrored = ShiftFlip(flip=True)(x, Noise(1))
    same = [bool(torch.equal(a, b)) for a, b in zip(mirrored, x, strict=True)]
    turned = [bool(torch.equal(a, b.flip(2))) for a, b in zip(mirrored, x, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and 20 < sum(same) < 44
    shifted = ShiftFlip(shift=2.0)(x, Noise(1))
    moves = Noise(1).fork("shift").uniform(64, 2, low=-2, high=2, dtype=torch.float64)
    down, right = moves[0].tolist()
    grid = torch.nn.functional.affine_grid(
        torch.tensor([[[1, 0, right / 2.5], [0, 1, down / 2.5]]], dtype=torch.float64),
        [1, 2, 5, 5],
        align_corners=False,
    )
    oracle = torch.nn.functional.grid_sample(x[:1], grid, align_corners=False)
    torch.testing.assert_close(shifted[:1], oracle, rtol=1e-9, atol=1e-12)
    assert ShiftFlip()(x, Noise(1)) is x
    with pytest.raises(ValueError, match="be images"):
        ShiftFlip(shift=1.0)(torch.zeros(2, 5, 1), Noise(1))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"eps=...\)\)` must be above 0"):
        Brewing(threat=Threat(eps=0.0))
    with pytest.raises(ValueError, match=r"decay=...\)` must rise"):
        Brewing(decay=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"poisons=...\)` must be greater than or equal to 1"):
        Brewing(poisons=0)


def test_bad_data_are_refused():
    model = made()
    with pytest.raises(ValueError, match="at most the 12 examples"):
        choose_targets(
            model, drawn(12, "test"), dataclasses.replace(TINY, targets=13), noise=Noise(0)
        )
    with pytest.raises(ValueError, match="one poison or more to each of the 8 groups"):
        settings = dataclasses.replace(TINY, group_size=1, poisons=5)
        choose_targets(model, drawn(12, "test"), settings, noise=Noise(0))
    test = drawn(12, "test")
    with torch.no_grad():
        wrong = Split(test.x, (model(test.x.double()).argmax(1) + 1) % 3)
    with pytest.raises(ValueError, match="classified correctly"):
        choose_targets(model, wrong, TINY, noise=Noise(0))
    targets = choose_targets(model, test, TINY, noise=Noise(3))
    with pytest.raises(ValueError, match="at most the 9 base examples; got 10"):
        brew(model, drawn(9, "base"), targets, TINY, noise=Noise(0))
    outside = Split(drawn(10, "base").x + 1, drawn(10, "base").y)
    with pytest.raises(ValueError, match="`brew` needs inputs inside"):
        brew(model, outside, targets, TINY, noise=Noise(0))


def test_targets_without_a_gradient_are_refused():
    model = made()
    targets = choose_targets(model, drawn(12, "test"), TINY, noise=Noise(3))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.input.weight.requires_grad_(True)
    with torch.no_grad():
        model.head.weight.zero_()
    with pytest.raises(Inapplicable, match="gradient that is not 0"):
        brew(model, drawn(10, "base"), targets, TINY, noise=Noise(0))
