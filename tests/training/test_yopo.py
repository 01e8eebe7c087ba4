"""YOPO: its limits, its two gradients written out, loss scaling, the released variant."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise, global_stream
from robustssm.models.presets import modern
from robustssm.training.standard import Standard
from robustssm.training.yopo import Yopo
from tests.training.tiny import classifier, examples, trained


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_eps_zero_with_one_pass_it_is_standard_training_up_to_rounding(dtype, rtol, norm):
    yopo = Yopo(threat=Threat(norm=norm, eps=0.0), outer=1)
    one, other = trained(yopo, dtype=dtype), trained(Standard(), dtype=dtype)
    one.assert_close(other, rtol=rtol, atol=rtol)
    assert torch.equal(one.random, other.random), "dropout draws as often"


@pytest.mark.parametrize("structure", ["s4d", "s5", "mamba"])
def test_that_limit_holds_for_state_space_models(structure):
    config = modern(structure, d_model=4, num_layers=1, d_state=4)
    x = Noise(1).uniform(3, 6, 2, dtype=torch.float64)
    y = Noise(2).integers(3, high=3)
    found = []
    for objective in (Yopo(threat=Threat(eps=0.0), outer=1), Standard()):
        model = config.build(shape=(6, 2), num_classes=3, noise=Noise(0)).double()
        gather(objective, model, x, y)
        found.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def gather(objective, model, x, y, *, scale=1.0):
    """Runs all backward passes and no step."""
    noise = Noise(3, torch.arange(len(x)))
    updates = []
    for update in objective.updates(model, x, y, memory={}, noise=noise):
        (scale * update.loss).backward()
        updates.append(update)
    return updates


class Linear(nn.Module):
    """Two classes whose logits are affine in the input; remembers what it was asked."""

    def __init__(self):
        super().__init__()
        with global_stream(Noise(0)):
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()
        self.seen = []

    def embed(self, x):
        self.seen.append(x.detach().clone())
        return self.first(x)

    def classify(self, tokens):
        return self.second(tokens.mean(1))

    def forward(self, x):
        return self.classify(self.embed(x))


@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 0.4)])
@pytest.mark.parametrize("outer, inner", [(1, 5), (3, 2)])
def test_on_a_linear_model_inner_steps_are_steps_of_pgd(norm, eps, outer, inner):
    threat, x, y = Threat(norm=norm, eps=eps), *sequences(6, classes=2)
    model = Linear()
    gather(Yopo(threat=threat, outer=outer, inner=inner, step_size=0.15), model, x, y)
    pgd = PGD(steps=outer * inner, step_size=0.15, keep="last")
    expected = pgd(Linear(), x, y, threat=threat, noise=Noise(3, torch.arange(6)))
    assert not torch.equal(expected, x)
    torch.testing.assert_close(model.seen[-1], expected, rtol=0, atol=1e-14)


def sequences(count, classes):
    x = Noise(1).uniform(count, 5, 3, dtype=torch.float64)
    return x, Noise(2).integers(count, high=classes)


class Curved(Linear):
    """A first layer and a rest that are both curved, with three classes."""

    def __init__(self):
        super().__init__()
        with global_stream(Noise(5)):
            self.second = nn.Linear(4, 3).double()

    def embed(self, x):
        return torch.tanh(2 * super().embed(x))

    def classify(self, tokens):
        return 3 * self.second(torch.sin(tokens).mean(1))


def test_gradients_are_those_of_its_source():
    x, y = sequences(6, classes=3)
    eps, step, outer, inner = 0.2, 0.05, 3, 2
    model = Curved()
    first, rest = list(model.first.parameters()), list(model.second.parameters())
    z = (x + Noise(3, torch.arange(6)).fork("start", 0).uniform(like=x, low=-eps, high=eps)).clamp(
        0, 1
    )
    sums = [torch.zeros_like(p) for p in first + rest]
    for _ in range(outer):
        e = model.embed(z)
        *of_rest, p = torch.autograd.grad(F.cross_entropy(model.classify(e), y), [*rest, e])
        for _ in range(inner):
            z = z.detach().requires_grad_()
            (g,) = torch.autograd.grad((p * model.embed(z)).sum(), z)
            z = torch.clamp(z.detach() + step * g.sign(), x - eps, x + eps).clamp(0, 1)
        of_first = torch.autograd.grad((p * model.embed(z)).sum(), first)
        for total, gradient in zip(sums, [*of_first, *of_rest], strict=True):
            total += gradient / outer
    fresh = Curved()
    yopo = Yopo(threat=Threat(eps=eps), outer=outer, inner=inner, step_size=step / eps)
    updates = gather(yopo, fresh, x, y)
    for parameter, expected in zip(fresh.parameters(), sums, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-13)
    assert [u.step for u in updates] == [False] * 5 + [True]
    assert float(updates[-1].loss.detach()) == float(updates[-2].parts["adversarial_loss"])


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_loss_scale_cancels(variant):
    x, y = sequences(6, classes=3)
    plain, scaled = Curved(), Curved()
    yopo = Yopo(threat=Threat(eps=0.1), outer=2, inner=2, variant=variant)
    gather(yopo, plain, x, y)
    gather(yopo, scaled, x, y, scale=2.0**16)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert one.grad.any()
        torch.testing.assert_close(other.grad / 2.0**16, one.grad, rtol=1e-12, atol=0)


def test_an_overflowing_scale_leaves_finite_losses():
    x, y = sequences(6, classes=3)
    yopo = Yopo(threat=Threat(eps=0.1), outer=2, inner=2)
    for update in gather(yopo, Curved(), x, y, scale=torch.inf)[1::2]:
        assert update.loss.isfinite()


def test_a_model_without_a_first_layer_is_refused():
    with global_stream(Noise(0)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(15, 3)).double()
    x, y = sequences(6, classes=3)
    with pytest.raises(Inapplicable, match="got Sequential without `embed` and `classify`"):
        gather(Yopo(threat=Threat(eps=0.1)), model, x, y)


def test_eps_rises_and_points_stay_in_the_threat_set():
    yopo = Yopo(threat=Threat(eps=0.2), outer=2, eps_warmup=0.5)
    assert yopo.at(0.25).threat.eps == pytest.approx(0.1)
    x, y = sequences(6, classes=3)
    model = Curved()
    gather(yopo.at(1.0), model, x, y)
    assert all(float((z - x).abs().max()) <= 0.2 * (1 + 1e-6) for z in model.seen)
    assert all(0 <= float(z.min()) and float(z.max()) <= 1 for z in model.seen)


def test_the_released_variant_written_out():
    eps, step, outer, inner, decay = 0.1, 0.025, 5, 3, 5e-4
    model = classifier(disturbable=False)
    parameters = list(model.parameters())
    x, y, _ = examples()
    eta = torch.full_like(x, eps)
    sums = [torch.zeros_like(p) for p in parameters]
    for _ in range(outer):
        e = model.embed(x + eta)
        loss = F.cross_entropy(model.classify(e), y)
        *gradients, p = torch.autograd.grad(loss, [*parameters, e])
        for _ in range(inner):
            eta = eta.detach().requires_grad_()
            (g,) = torch.autograd.grad((p * model.embed(x + eta)).sum(), eta)
            eta = (eta.detach() + step * g.sign()).clamp(-eps, eps)
            eta = (x + eta).clamp(0, 1) - x
        h = (p * model.embed(x + eta)).sum() + decay / 2 * model.encode.weight.square().sum()
        first = torch.autograd.grad(h, parameters, allow_unused=True)
        for total, one, two in zip(sums, gradients, first, strict=True):
            total += one if two is None else one + two
    with torch.no_grad():
        for parameter, total in zip(parameters, sums, strict=True):
            parameter -= 2 * 0.1 * total
    yopo = Yopo(threat=Threat(eps=eps), step_size=step / eps, variant="released")
    ran = trained(yopo, disturbable=False, counts=(8,))
    for ours, theirs in zip(ran.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_released_variant_steps_twice_per_batch():
    yopo = Yopo(threat=Threat(eps=0.1), outer=2, variant="released")
    updates = gather(yopo, Curved(), *sequences(4, classes=3))
    assert [update.step for update in updates] == [False] * 4 + [True, True]
    with pytest.raises(ValueError, match="norm='linf'"):
        Yopo(threat=Threat(norm="l2", eps=0.1), variant="released")
