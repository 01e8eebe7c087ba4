"""TRADES: its limit, the published loss written out, its warm-ups."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise, global_stream
from robustssm.models.presets import modern
from robustssm.testing.attacks import ContractClassifier
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades

THREAT = Threat(eps=0.1)
KL = PGD(steps=3, loss="kl", start="normal", keep="last")
PARTS = {"clean_loss", "kl", "accuracy", "adversarial_accuracy"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_beta_zero_it_is_standard_training_bit_for_bit(dtype, outcome):
    standard = outcome(Standard(), dtype=dtype)
    ran = outcome(Trades(threat=THREAT, beta=0.0), dtype=dtype)
    ran.assert_equals(standard)
    assert set(ran.update.parts) == PARTS
    assert ran.update.parts["kl"] > 0, "the term is measured even where it does not count"
    outcome(Trades(threat=THREAT, beta_warmup=0.5).at(0.0), dtype=dtype).assert_equals(standard)


def test_above_zero_it_is_not(outcome):
    ran = outcome(Trades(threat=THREAT, beta=1e-3))
    assert set(ran.update.parts) == PARTS
    with pytest.raises(AssertionError):
        ran.assert_equals(outcome(Standard()))


def published_loss(model, x, y, start, *, step_size, eps, steps, beta):
    """zhang2019trades in the shape of its published code: eval for the attack, batchmean KL."""
    model.eval()
    x_adv = x + start
    for _ in range(steps):
        x_adv.requires_grad_()
        kl = F.kl_div(F.log_softmax(model(x_adv), 1), F.softmax(model(x), 1), reduction="sum")
        (g,) = torch.autograd.grad(kl, x_adv)
        x_adv = x_adv.detach() + step_size * g.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0.0, 1.0)
    model.train()
    clean = model(x)
    robust = F.kl_div(F.log_softmax(model(x_adv), 1), F.softmax(clean, 1), reduction="batchmean")
    return F.cross_entropy(clean, y) + beta * robust


@pytest.mark.parametrize(
    "eps, alpha, beta", [(0.3, 0.04, 1.0), (0.031, 0.007, 6.0)], ids=["mnist", "cifar10"]
)
def test_equals_the_published_loss(eps, alpha, beta):
    model = ContractClassifier((5, 3), noise=Noise(0), disturbable=False)
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    noise = Noise(3, torch.arange(8))
    start = noise.fork("start", 0).normal(like=x, std=0.001)
    expected = published_loss(model, x, y, start, step_size=alpha, eps=eps, steps=10, beta=beta)
    attack = PGD(steps=10, step_size=alpha / eps, loss="kl", start="normal", keep="last")
    objective = Trades(threat=Threat(eps=eps), beta=beta, attack=attack)
    (update,) = objective.updates(model, x, y, memory={}, noise=noise)
    torch.testing.assert_close(update.loss, expected, rtol=1e-6, atol=0)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(update.loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    parts = update.parts
    torch.testing.assert_close(parts["clean_loss"] + beta * parts["kl"], update.loss.detach())


def test_at_eps_zero_the_divergence_pulls_on_nothing():
    model = ContractClassifier((5, 3), noise=Noise(0), disturbable=False)
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    grads = {}
    for beta in (0.0, 50.0):
        objective = Trades(threat=Threat(eps=0.0), beta=beta)
        (update,) = objective.updates(model, x, y, memory={}, noise=Noise(3))
        grads[beta] = torch.autograd.grad(update.loss, list(model.parameters()))
    for still, pulled in zip(*grads.values(), strict=True):
        torch.testing.assert_close(still, pulled, rtol=1e-9, atol=1e-12)


def test_the_attack_takes_the_clean_prediction_once_and_in_eval_mode():
    modes = []

    class Spy(ContractClassifier):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    model = Spy((5, 3), noise=Noise(0), disturbable=False).train()
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    objective = Trades(threat=THREAT, attack=PGD(steps=4, loss="kl", start="normal", keep="last"))
    list(objective.updates(model, x, y, memory={}, noise=Noise(3)))
    assert modes == [False] * 5 + [True] * 2


def test_warm_ups_are_linear_and_independent():
    objective = Trades(threat=Threat(eps=0.2), beta=6.0, eps_warmup=0.5, beta_warmup=0.25)
    seen = [(now.threat.eps, now.beta) for now in map(objective.at, (0.0, 0.125, 0.25, 0.5, 1.0))]
    assert seen == [
        pytest.approx(pair) for pair in ((0, 0), (0.05, 3), (0.1, 6), (0.2, 6), (0.2, 6))
    ]


def test_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta"):
        Trades(threat=THREAT, beta=-1.0)


def test_parameters_learn_under_autocast(outcome):
    """The clean prediction of the attack is taken without gradients, within the same autocast."""
    ran = outcome(Trades(threat=THREAT), autocast=True)
    assert all(g is not None and g.count_nonzero() for g in ran.gradients.values())


def small_s4():
    config = modern("s4", d_model=16, num_layers=1, d_state=4)
    return config.build(shape=(1, 4, 4), num_classes=3, noise=Noise(0))


def test_two_forward_passes_and_one_graph_of_the_kernel_in_each_step(monkeypatch):
    model = small_s4()
    x, y = Noise(1).uniform(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    objective = Trades(threat=Threat(eps=0.1), attack=KL)
    passes, kernels = [], []
    forward, taps = type(model).forward, type(model.blocks[0].layer)._taps
    monkeypatch.setattr(
        type(model), "forward", lambda self, z: passes.append(len(z)) or forward(self, z)
    )
    monkeypatch.setattr(
        type(model.blocks[0].layer),
        "_taps",
        lambda *a: kernels.append(torch.is_grad_enabled()) or taps(*a),
    )
    (update,) = objective.updates(model, x, y, memory={}, noise=Noise(2))
    assert passes == [4, 2, 1] + [4] * KL.steps + [4], "one clean, memory of rows, steps, shifted"
    assert kernels.count(True) == 1 and kernels.count(False) == 1
    update.loss.backward()
    shared = {name: p.grad.clone() for name, p in model.named_parameters()}

    monkeypatch.setattr("robustssm.training.trades.same_in_both_modes", lambda model: False)
    monkeypatch.setattr("robustssm.training.trades._shared", lambda model: nullcontext())
    model.zero_grad()
    (plain,) = objective.updates(model, x, y, memory={}, noise=Noise(2))
    plain.loss.backward()
    torch.testing.assert_close(update.loss, plain.loss, rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        scale = p.grad.abs().max().item()
        torch.testing.assert_close(shared[name], p.grad, rtol=0, atol=1e-4 * scale + 1e-9)


def test_dropout_keeps_a_clean_pass_of_its_own():
    with global_stream(Noise(0)):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    model.train()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    objective = Trades(threat=Threat(eps=0.1), attack=KL)
    x, y = Noise(1).uniform(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    with global_stream(Noise(3)):
        list(objective.updates(model, x, y, memory={}, noise=Noise(2)))
    assert modes == [False] * (1 + KL.steps) + [True, True]
