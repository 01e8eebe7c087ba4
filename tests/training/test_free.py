"""Free training: its limit, its algorithm written out, its memory, the released variant."""

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks.restrictions import Band, Window
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise, Streams
from robustssm.models.presets import modern
from robustssm.training import checkpoint
from robustssm.training.free import Free
from robustssm.training.loop import train_epoch
from robustssm.training.schedule import Schedule
from robustssm.training.standard import Standard
from tests.training.tiny import classifier, examples, trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_eps_zero_with_one_replay_it_is_standard_training_bit_for_bit(dtype, norm):
    free = Free(threat=Threat(norm=norm, eps=0.0), replays=1)
    trained(free, dtype=dtype).assert_equals(trained(Standard(), dtype=dtype))


@pytest.mark.parametrize("structure", ["s4", "s4d", "dss", "s5", "mega", "mamba"])
@pytest.mark.parametrize("length", [6, 64])
def test_that_limit_holds_for_state_space_models(structure, length):
    """Though their layers know whether the gradient of their input is asked for."""
    config = modern(structure, d_model=8, num_layers=2, d_state=4)
    x, y = Noise(1).uniform(5, length, 2), Noise(2).integers(5, high=3)
    found = []
    for objective in (Free(threat=Threat(eps=0.0), replays=1), Standard()):
        model = config.build(shape=(length, 2), num_classes=3, noise=Noise(0))
        memory = objective.memory(x, batch_size=5)
        for update in objective.updates(model, x, y, memory=memory, noise=Noise(3)):
            update.loss.backward()
        found.append([update.loss, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("changed", [{"eps": 0.05, "replays": 1}, {"eps": 0.0, "replays": 2}])
def test_otherwise_it_is_not(changed):
    free = Free(threat=Threat(eps=changed["eps"]), replays=changed["replays"])
    with pytest.raises(AssertionError):
        trained(free).assert_equals(trained(Standard()))


def written_out(eps, step, replays, *, cut, counts=(8, 8, 3)):
    """Algorithm 1 of the source in float64; `cut`: the gradient is zero where bounds cut."""
    model = classifier(disturbable=False)
    delta = torch.zeros(8, 2, 4, 4, dtype=torch.float64)
    for batch, count in enumerate(counts):
        x, y, _ = examples(count, batch=batch)
        for _ in range(replays):
            z = x + delta[:count]
            inside = (z >= 0) & (z <= 1)
            z = z.clamp(0, 1).requires_grad_()
            loss = F.cross_entropy(model(z), y)
            *gradients, g = torch.autograd.grad(loss, [*model.parameters(), z])
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
                g = g * inside if cut else g
                delta[:count] = (delta[:count] + step * g.sign()).clamp(-eps, eps)
    return model, delta


@pytest.mark.parametrize(
    "free, eps, cut",
    [
        (Free(threat=Threat(eps=0.3), replays=3), 0.3, False),
        (Free(threat=Threat(eps=0.3), replays=3, variant="released"), 4 / 255, True),
    ],
    ids=["paper", "released"],
)
def test_it_is_the_algorithm_of_its_source(free, eps, cut):
    ran = trained(free, disturbable=False)
    model, delta = written_out(eps, eps, 3, cut=cut)
    torch.testing.assert_close(ran.memory["delta"], delta, rtol=0, atol=1e-15)
    for ours, theirs in zip(ran.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_step_is_a_fraction_of_eps_and_the_warm_up_shrinks_the_perturbation():
    free = Free(threat=Threat(eps=0.2), replays=1, step_size=0.25, eps_warmup=0.5)
    assert float(trained(free.at(1.0)).memory["delta"].abs().max()) == pytest.approx(0.15)
    assert float(trained(free.at(0.125), counts=(8,)).memory["delta"].abs().max()) == (
        pytest.approx(0.0125)
    )
    assert not trained(free.at(0.0)).memory["delta"].any()


def test_under_l2_the_perturbation_stays_in_the_ball_and_reaches_its_surface():
    delta = trained(Free(threat=Threat(norm="l2", eps=0.5), replays=4)).memory["delta"]
    lengths = delta.flatten(1).norm(dim=1)
    assert lengths.max() <= 0.5 * (1 + 1e-6) and lengths.max() > 0.49


def test_a_partial_batch_moves_its_places_only():
    free = Free(threat=Threat(eps=0.1), replays=2)
    before, after = trained(free, counts=(8,)).memory, trained(free, counts=(8, 3)).memory
    assert torch.equal(before["delta"][3:], after["delta"][3:])
    assert not torch.equal(before["delta"][:3], after["delta"][:3])


def test_a_window_bounds_where_it_moves():
    threat = Threat(eps=0.1, window=Window(length=4))
    delta = trained(Free(threat=threat)).memory["delta"].flatten(2)
    assert delta[..., :4].abs().max() > 0.05 and not delta[..., 4:].any()


@pytest.mark.parametrize(
    "restriction", [{"band": Band(low=0.0, high=0.5)}, {"channel_scales": (1.0, 2.0)}]
)
def test_a_threat_in_other_units_is_refused(restriction):
    with pytest.raises(Inapplicable, match="`Free` needs a threat set that is a ball"):
        trained(Free(threat=Threat(eps=0.1, **restriction)))


def test_a_run_that_was_stopped_goes_on_with_its_perturbation(problem, tmp_path):
    free = Free(threat=Threat(eps=0.1), replays=2)

    def learner():
        made = problem.learner()
        made.memory = free.memory(problem.x[:1], batch_size=16)
        return made

    def epoch(of, start=0):
        return train_epoch(
            of,
            free,
            problem.batches(of.epoch, start),
            batches_per_epoch=3,
            epochs=2,
            schedule=Schedule(),
            max_norm=1.0,
            placement=problem.placement,
            streams=Streams(0),
        )

    whole = learner()
    list(epoch(whole)), list(epoch(whole))
    stopped, resumed = learner(), learner()
    first = epoch(stopped)
    next(first), next(first)
    first.close()
    checkpoint.write(tmp_path / "last", stopped)
    checkpoint.read(tmp_path / "last", resumed)
    assert resumed.memory["delta"].any()
    list(epoch(resumed, start=2)), list(epoch(resumed))
    assert whole.step == resumed.step == 12, "every replay is a step"
    assert torch.equal(whole.memory["delta"], resumed.memory["delta"])
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_released_variant_knows_its_own_eps_only():
    released = Free(threat=Threat(eps=0.3), variant="released")
    assert float(trained(released).memory["delta"].abs().max()) == pytest.approx(4 / 255)
    assert (released.epochs_divisor, Free(threat=Threat(eps=0.3)).epochs_divisor) == (1, 4)
    with pytest.raises(ValueError, match="norm='linf'"):
        Free(threat=Threat(norm="l2", eps=0.3), variant="released")
    with pytest.raises(ValueError, match="eps_warmup=0"):
        Free(threat=Threat(eps=0.3), variant="released", eps_warmup=0.5)
