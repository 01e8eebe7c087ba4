"""Small models to look at, and what a probe must leave as it was."""

from contextlib import contextmanager

import torch
from torch import nn

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.diagnostics.base import Subject
from robustssm.layers.base import SequenceLayer
from robustssm.models.block import Block, BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.presets import modern
from robustssm.ops.recurrence import Recurrence, run

STRUCTURES = ("s4", "dss", "s5", "mega", "mamba", "s4d")
PLAIN = BlockConfig(norm="none", residual=False, activation="none", mixing="none")


def model(structure, *, length=12, noise=0, **sizes):
    config = modern(structure, **{"d_model": 6, "num_layers": 2, "d_state": 4, **sizes})
    return config.build(shape=(length, 2), num_classes=3, noise=Noise(noise))


def model_of(layer, *, length=12, d_model=4):
    """A classifier around layers of these settings, or around one layer that is there already."""
    if not isinstance(layer, SequenceLayer):
        config = SequenceClassifierConfig(layer=layer, d_model=d_model, num_layers=1, block=PLAIN)
        return config.build(shape=(length, 2), num_classes=3, noise=Noise(0))
    made = model("s4d", length=length, d_model=layer.d_model, num_layers=1)
    made.blocks[0] = wrapped(layer)
    return made


def wrapped(layer):
    block = Block(PLAIN, model("s4d").config.layer, d_model=layer.d_model, length=1, noise=Noise(0))
    block.layer = layer
    return block


def subject(network, *, examples=3, length=12, eps=0.1):
    x = Noise(1).uniform(examples, length, 2)
    y = torch.arange(examples) % 3
    threat = Threat(norm="linf", eps=eps)
    attack = PGD(steps=3)
    return Subject(network, x, y, threat=threat, attack=attack, noise=Noise(2).rows(examples))


@contextmanager
def left_alone(network: nn.Module):
    """Fails if parameters, buffers, gradients, modes, hooks or requirements of gradients change."""

    def seen():
        tensors = {name: t.detach().clone() for name, t in network.state_dict().items()}
        grads = [p.grad if p.grad is None else p.grad.clone() for p in network.parameters()]
        flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts]
        return tensors, grads, flags, [p.requires_grad for p in network.parameters()]

    parts = list(network.modules())
    before = seen()
    yield
    after = seen()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(after[1], before[1], strict=True)
    )
    assert after[2:] == before[2:]
    assert list(network.modules()) == parts


class Selfish(SequenceLayer):
    """h[t] = sigmoid(x[t]) h[t-1] + x[t]: follows its input in a way that no bound here knows."""

    def __init__(self, d_model=4):
        super().__init__()
        self.d_model = d_model

    def forward(self, x):
        return run(self.recurrence(x), x)

    def reference(self, x):
        return self(x)

    def recurrence(self, x):
        ones = x.new_ones(1, 1, self.d_model, 1, 1)
        zeros = x.new_zeros(self.d_model, 1, 1)
        return Recurrence(A=torch.sigmoid(x)[..., None], B=ones, C=ones, D=zeros)


class Decay(Selfish):
    """h[t] = a h[t-1] + x[t] in every channel."""

    def __init__(self, a, d_model=4):
        super().__init__(d_model)
        self.a = nn.Parameter(torch.tensor(a))

    def recurrence(self, x):
        ones = x.new_ones(1, 1, self.d_model, 1, 1)
        zeros = x.new_zeros(self.d_model, 1, 1)
        return Recurrence(A=self.a * ones[..., 0], B=ones, C=ones, D=zeros)
