"""PGD training: its limit, the published loss, its warm-up."""

import pytest
import torch
from torch.nn import functional as F

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.testing.attacks import ContractClassifier
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_at_eps_zero_it_is_standard_training_bit_for_bit(dtype, norm, start, outcome):
    objective = PGDTraining(threat=Threat(norm=norm, eps=0.0), attack=PGD(steps=3, start=start))
    outcome(objective, dtype=dtype).assert_equals(outcome(Standard(), dtype=dtype))


def test_above_zero_it_is_not(outcome):
    objective = PGDTraining(threat=Threat(eps=0.1))
    with pytest.raises(AssertionError):
        outcome(objective).assert_equals(outcome(Standard()))


def test_loss_is_that_of_the_published_attack():
    model = ContractClassifier((5, 3), noise=Noise(0), disturbable=False)
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    eps, alpha, noise = 0.3, 0.04, Noise(3, torch.arange(8))
    z = (x + noise.fork("start", 0).uniform(like=x, low=-eps, high=eps)).clamp(0, 1)
    for _ in range(10):
        z.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = torch.clamp(z.detach() + alpha * g.sign(), x - eps, x + eps).clamp(0, 1)
    expected = F.cross_entropy(model(z), y)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    objective = PGDTraining(
        threat=Threat(eps=eps), attack=PGD(steps=10, step_size=alpha / eps, keep="last")
    )
    (update,) = objective.updates(model, x, y, memory={}, noise=noise)
    torch.testing.assert_close(update.loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(update.loss, list(model.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    assert float(update.parts["adversarial_accuracy"]) == float(
        (model(z).argmax(1) == y).float().mean()
    )


def test_eps_rises_linearly_and_then_stays():
    objective = PGDTraining(threat=Threat(eps=0.3), eps_warmup=0.25)
    radii = [objective.at(p).threat.eps for p in (0.0, 0.125, 0.25, 0.6, 1.0)]
    assert radii == pytest.approx([0.0, 0.15, 0.3, 0.3, 0.3])
    now = objective.at(0.125)
    assert now.at(0.125) == now, "what is in force does not ramp again"
    assert PGDTraining(threat=Threat(eps=0.3)).at(0.0).threat.eps == 0.3


def test_parameters_learn_under_autocast(outcome):
    """Casts that autocast remembers from the attack must not cut the gradient of parameters."""
    objective = PGDTraining(threat=Threat(eps=0.1), attack=PGD(steps=2, keep="best"))
    ran = outcome(objective, autocast=True)
    assert all(g is not None and g.count_nonzero() for g in ran.gradients.values())
