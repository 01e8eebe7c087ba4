"""The stated cost of every training method against a count of passes; equal budgets."""

import pytest
import torch

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise, global_stream
from robustssm.layers.s4d import S4DConfig
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.training.cost import divided_epochs, equal_budget
from robustssm.training.fast import Fast
from robustssm.training.free import Free
from robustssm.training.jacobian import JacobianPenalty
from robustssm.training.mart import Mart
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades
from robustssm.training.weight_perturbation import AdversarialWeightPerturbation
from robustssm.training.yopo import Yopo
from tests.training.tiny import CrossEntropy

ROWS, CLASSES = 4, 3
THREAT = Threat(eps=0.1)
PGD_10 = PGDTraining(threat=THREAT, attack=PGD(steps=10, keep="last"))
TRADES_10 = Trades(threat=THREAT, attack=PGD(steps=10, loss="kl", start="normal", keep="last"))
MART_10 = Mart(threat=THREAT, attack=PGD(steps=10, start="normal", keep="last"))
COSTS = {
    "standard": (Standard(), (1, 1)),
    "pgd": (PGD_10, (11, 11)),
    "pgd-best": (PGDTraining(threat=THREAT, attack=PGD(steps=10, keep="best")), (12, 11)),
    "trades": (TRADES_10, (13, 12)),
    "free": (Free(threat=THREAT, replays=4), (4, 4)),
    "free-released": (Free(threat=THREAT, variant="released"), (4, 4)),
    "yopo": (Yopo(threat=THREAT, outer=5, inner=3), (5, 5)),
    "yopo-released": (Yopo(threat=THREAT, outer=5, inner=3, variant="released"), (5, 5)),
    "fast": (Fast(threat=THREAT, check_every=100), (2, 2)),
    "mart": (MART_10, (12, 12)),
    "mart-beta-0": (Mart(threat=THREAT, attack=MART_10.attack, beta=0.0), (11, 11)),
    "awp-pgd": (AdversarialWeightPerturbation(objective=PGD_10), (12, 12)),
    "awp-trades": (AdversarialWeightPerturbation(objective=TRADES_10), (15, 14)),
    "awp-gamma-0": (AdversarialWeightPerturbation(objective=PGD_10, gamma=0.0), (11, 11)),
    "jacobian": (JacobianPenalty(weight=0.1), (1, 3)),
    "jacobian-weight-0": (JacobianPenalty(weight=0.0), (1, 1)),
}


class Counting:
    """Counts rows through the first block of a model: forward, backward, and backward of that.

    With dropout, so that no method may share a pass between modes.
    """

    def __init__(self):
        config = SequenceClassifierConfig(
            layer=S4DConfig(d_state=2),
            d_model=4,
            num_layers=1,
            block=BlockConfig(norm="pre", activation="gelu", dropout=0.1),
        )
        self.model = config.build(shape=(6, 2), num_classes=CLASSES, noise=Noise(0))
        self.forward = self.backward = 0
        self.model.blocks[0].register_forward_hook(self._went_forward)

    def _went_forward(self, module, args, output):
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._went_backward)

    def _went_backward(self, gradient):
        self.backward += len(gradient)
        if gradient.requires_grad:
            gradient.register_hook(self._went_backward)


def measurements(objective):
    """Forward and backward passes of one batch that are no part of training."""
    if isinstance(objective, Fast):  # the check of the first batch: PGD-4 keeping its best, judged
        return 1 + 5 + 1, 4
    if isinstance(objective, Mart) and objective.beta == 0:
        return 2, 0
    if isinstance(objective, JacobianPenalty) and objective.weight == 0:
        return 1, 1
    return 0, 0


@pytest.mark.parametrize("name", COSTS)
def test_a_method_costs_what_it_states(name):
    objective, expected = COSTS[name]
    counting = Counting()
    counting.model.train()
    x, y = Noise(1).uniform(ROWS, 6, 2), Noise(2).integers(ROWS, high=CLASSES)
    noise, memory = Noise(3, torch.arange(ROWS)), objective.memory(x, batch_size=ROWS)
    with global_stream(Noise(4)):
        for update in objective.updates(counting.model, x, y, memory=memory, noise=noise):
            update.loss.backward()
    forward, backward = measurements(objective)
    counted = (counting.forward / ROWS - forward, counting.backward / ROWS - backward)
    assert tuple(objective.passes(CLASSES)) == expected == counted


def test_epochs_of_equal_budget():
    assert equal_budget(100, Free(threat=THREAT), PGD_10, num_classes=10) == 275
    assert equal_budget(100, PGD_10, Free(threat=THREAT), num_classes=10) == 36
    assert equal_budget(1, PGD_10, Standard(), num_classes=10) == 1, "never none"
    for objective, _ in COSTS.values():
        assert equal_budget(30, objective, objective, num_classes=10) == 30


def test_epochs_as_the_source_divides_them():
    assert divided_epochs(30, Free(threat=THREAT, replays=4)) == 8
    assert divided_epochs(30, Free(threat=THREAT, variant="released")) == 30
    assert divided_epochs(30, Standard()) == 30


def test_an_unknown_cost_is_refused():
    with pytest.raises(Inapplicable, match="CrossEntropy does not state its own"):
        equal_budget(10, CrossEntropy(), Standard(), num_classes=2)
