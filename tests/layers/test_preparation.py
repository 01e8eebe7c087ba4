"""What is prepared while parameters are frozen, and that it does not outlive that."""

import pytest
import torch
from torch import nn

from robustssm.core.rng import Noise
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.preparation import Preparing, _Kept
from robustssm.layers.s5 import S5Config


class Doubling(Preparing):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.made = 0

    def forward(self, key):
        return self._prepared(key, self._make)

    def _make(self):
        self.made += 1
        return 2 * self.weight


def test_each_thing_is_made_once_and_without_gradient():
    module = Doubling()
    assert module("a") is not module("a") and module("a").requires_grad
    module.made = 0
    with module.frozen():
        assert module("a") is module("a") and not module("a").requires_grad
        with module.frozen():
            module("a")
            module("b")
        assert module("b") is not module("a")
        assert module.made == 2
    module("a")
    assert module.made == 3


def test_nothing_stays_after_an_error():
    module = Doubling()
    with pytest.raises(RuntimeError, match="inside"), module.frozen():
        module("a")
        raise RuntimeError("inside")
    with torch.no_grad():
        module.weight.fill_(5.0)
    assert torch.equal(module("a"), torch.tensor([10.0, 10.0]))


@pytest.mark.parametrize(
    "config",
    [
        S5Config(d_state=4),
        MambaConfig(discretization="zoh"),
        MegaConfig(),
        MegaConfig(bidirectional=False),
    ],
    ids=["s5", "mamba", "mega", "causal mega"],
)
def test_frozen_layers_give_the_same_numbers_and_input_gradients(config):
    layer = config.build(d_model=4, length=40, noise=Noise(0))
    preparing = [module for module in layer.modules() if isinstance(module, Preparing)]
    assert preparing
    outcomes = []
    for length in (40, 7, 40):
        x = Noise(length).normal(2, length, 4).requires_grad_()
        outcomes.append((x, layer(x), torch.autograd.grad(layer(x).square().sum(), x)[0]))
    for module in preparing:
        module._kept = _Kept(module._sources(), gradients=False)
    for _ in range(2):
        for x, y, gradient in outcomes:
            assert torch.equal(layer(x), y)
            assert torch.equal(torch.autograd.grad(layer(x).square().sum(), x)[0], gradient)
    assert all(module._kept.made for module in preparing)
