"""Adversarial weight perturbation: limit, the gradient written out, weights put back exactly."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.attacks.pgd import PGD
from robustssm.attacks.restrictions import Window
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable, NonFiniteLoss
from robustssm.core.rng import Noise, global_stream
from robustssm.models.presets import modern
from robustssm.ops import divergence
from robustssm.training.free import Free
from robustssm.training.loop import train_batch
from robustssm.training.mart import Mart
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades
from robustssm.training.weight_perturbation import AdversarialWeightPerturbation
from tests.training.tiny import classifier, examples, trained

THREAT = Threat(eps=0.2)
ATTACK = PGD(steps=3, keep="last")
KL = PGD(steps=3, keep="last", loss="kl", start="normal")
INSIDE = {
    "pgd": PGDTraining(threat=THREAT, attack=ATTACK),
    "trades": Trades(threat=THREAT, attack=KL, beta=2.0),
    "mart": Mart(threat=THREAT, attack=ATTACK),
    "l2": PGDTraining(threat=Threat(norm="l2", eps=0.5), attack=ATTACK),
}
each = pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE.keys())


@each
def test_at_gamma_zero_it_is_the_objective_inside_bit_for_bit(inside):
    trained(AdversarialWeightPerturbation(objective=inside, gamma=0.0)).assert_equals(
        trained(inside)
    )


def test_before_its_start_it_is_the_objective_inside():
    awp = AdversarialWeightPerturbation(
        objective=PGDTraining(threat=THREAT, eps_warmup=0.5), start=0.5
    )
    assert (awp.at(0.25).gamma, awp.at(0.5).gamma) == (0.0, 0.01)
    assert awp.at(0.25).objective.threat.eps == pytest.approx(0.1)


def gather(objective, model, x, y, noise):
    updates = []
    for update in objective.updates(model, x, y, memory={}, noise=noise):
        update.loss.backward()
        updates.append(update)
    return updates


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_the_gradient_is_that_at_perturbed_weights(method):
    inside, gamma = INSIDE[method], 0.05
    x, y, noise = examples()
    model = classifier(disturbable=False)
    x_adv = inside.attack(model, x, y, threat=THREAT, noise=noise)

    def loss(of):
        if method == "pgd":
            return F.cross_entropy(of(x_adv), y)
        clean = of(x)
        return F.cross_entropy(clean, y) + 2.0 * divergence.kl(clean, of(x_adv)).mean()

    gradients = torch.autograd.grad(loss(model), list(model.parameters()))
    moved = classifier(disturbable=False)
    with torch.no_grad():
        for w, g in zip(moved.parameters(), gradients, strict=True):
            if w.ndim > 1:
                w += gamma * w.norm() * g / g.norm()
    expected_loss = loss(moved)
    expected = torch.autograd.grad(expected_loss, list(moved.parameters()))
    awp = AdversarialWeightPerturbation(objective=inside, gamma=gamma)
    first, second = gather(awp, model, x, y, noise)
    assert (first.step, second.step) == (False, True)
    assert expected_loss > loss(model)
    torch.testing.assert_close(first.loss, expected_loss, rtol=1e-9, atol=0)
    assert torch.equal(first.loss.detach(), second.loss.detach())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-12)


@each
def test_weights_are_put_back_bit_for_bit_before_the_step(inside):
    model, (x, y, noise) = classifier(torch.float32), examples(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    awp = AdversarialWeightPerturbation(objective=inside, gamma=0.1)
    moved = []
    with global_stream(Noise(4)):  # for dropout
        for update in awp.updates(model, x, y, memory={}, noise=noise):
            update.loss.backward()
            moved.append(not all(map(torch.equal, before, model.parameters())))
    assert moved == [True, False]


def test_weights_are_put_back_where_the_loss_is_not_finite(problem):
    class Diverging(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (math.nan if self.training else 1.0)

    learner = problem.learner()
    learner.model = Diverging(*learner.model)
    before = [p.detach().clone() for p in learner.model.parameters()]
    awp = AdversarialWeightPerturbation(objective=PGDTraining(threat=THREAT), gamma=0.1)
    with pytest.raises(NonFiniteLoss) as caught:  # the traceback keeps the loop's frame alive
        train_batch(learner, awp, problem.x, problem.y, noise=Noise(0), placement=problem.placement)
    assert all(map(torch.equal, before, learner.model.parameters())) and caught


def test_batches_that_attacks_cut_into_parts_find_their_points_again():
    with global_stream(Noise(0)):
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = Noise(1).uniform(300, 6, dtype=torch.float64), Noise(2).integers(300, high=3)
    noise, inside = Noise(3, torch.arange(300)), INSIDE["pgd"]
    x_adv = inside.attack(model, x, y, threat=THREAT, noise=noise)
    tiny = AdversarialWeightPerturbation(objective=inside, gamma=1e-12)
    first, _ = gather(tiny, model, x, y, noise)
    torch.testing.assert_close(first.loss, F.cross_entropy(model(x_adv), y), rtol=1e-9, atol=0)


def test_roles_choose_what_is_perturbed():
    config = modern("s4d", d_model=4, num_layers=1, d_state=4)
    x, y = Noise(1).uniform(3, 6, 2), Noise(2).integers(3, high=3)

    def moved(*chosen):
        model = config.build(shape=(6, 2), num_classes=3, noise=Noise(0))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        awp = AdversarialWeightPerturbation(objective=INSIDE["pgd"], roles=chosen)
        updates = awp.updates(model, x, y, memory={}, noise=Noise(3, torch.arange(3)))
        next(updates)
        now = {n: p.detach().clone() for n, p in model.named_parameters()}
        updates.close()
        assert all(torch.equal(value, model.get_parameter(n)) for n, value in before.items())
        return {n for n, value in before.items() if not torch.equal(value, now[n])}

    weights, dynamics = moved("weight"), moved("dynamics")
    assert {"input.weight", "head.weight"} <= weights and "input.bias" not in weights
    assert dynamics and not weights & dynamics


@pytest.mark.parametrize("inside", [Standard(), Free(threat=THREAT)], ids=["standard", "free"])
def test_an_objective_without_an_attack_is_refused(inside):
    with pytest.raises(ValueError, match="must have the settings `attack` and `threat`"):
        AdversarialWeightPerturbation(objective=inside)


class NoModule:
    training = True

    def __call__(self, x):
        return x.flatten(1)[:, :4]

    def train(self, mode=True):
        return self


def test_what_it_does_not_cover_is_refused():
    awp = AdversarialWeightPerturbation(objective=INSIDE["pgd"])
    x, y, noise = examples()
    with pytest.raises(Inapplicable, match="whose weights it can see"):
        gather(awp, NoModule(), x, y, noise)
    window = Threat(eps=0.1, window=Window(length=4, where="anywhere"))
    anywhere = AdversarialWeightPerturbation(objective=PGDTraining(threat=window, attack=ATTACK))
    with pytest.raises(Inapplicable, match="a window that may be anywhere"):
        gather(anywhere, classifier(disturbable=False), x, y, noise)
    with pytest.raises(ValueError, match="No role of a parameter is called 'wieght'"):
        AdversarialWeightPerturbation(objective=INSIDE["pgd"], roles=("wieght",))
