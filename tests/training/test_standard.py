"""Standard training: the loss, its parts, and label smoothing."""

import torch
from torch.nn import functional as F

from robustssm.core.rng import Noise
from robustssm.testing.attacks import ContractClassifier
from robustssm.training.standard import Standard


def test_loss_and_parts():
    model = ContractClassifier((5, 3), noise=Noise(0), disturbable=False)
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    (update,) = Standard().updates(model, x, y, memory={}, noise=Noise(3))
    logits = model(x).detach()
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -log_p[torch.arange(8), y].mean()
    torch.testing.assert_close(update.loss.detach(), expected, rtol=1e-9, atol=0)
    assert update.step and set(update.parts) == {"clean_loss", "accuracy"}
    assert torch.equal(update.parts["clean_loss"], update.loss.detach())
    assert float(update.parts["accuracy"]) == float((logits.argmax(1) == y).float().mean())
    assert 0 < float(update.parts["accuracy"]) < 1


def test_label_smoothing_spreads_the_target():
    model = ContractClassifier((5, 3), noise=Noise(0), disturbable=False)
    x, y = Noise(1).uniform(8, 5, 3, dtype=torch.float64), Noise(2).integers(8, high=4)
    (update,) = Standard(label_smoothing=0.2).updates(model, x, y, memory={}, noise=Noise(3))
    target = 0.8 * F.one_hot(y, 4).double() + 0.2 / 4
    expected = -(target * model(x).detach().log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(update.loss.detach(), expected, rtol=1e-9, atol=0)
