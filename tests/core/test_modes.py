"""Contexts that give a model back as they found it."""

import pytest
import torch
from torch import nn

from robustssm.core.modes import mode, same_in_both_modes, unchanged
from robustssm.core.rng import Noise, global_stream


@pytest.fixture
def model():
    with global_stream(Noise(0)):
        inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), inner)
    net.train()
    net[1].eval()  # a frozen normalisation inside a training network
    net[2][0].eval()
    return net


def modes(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_mode_sets_every_submodule_and_restores_each(model, training):
    before = modes(model)
    assert len(set(before)) == 2
    with mode(model, training=training):
        assert set(modes(model)) == {training}
    assert modes(model) == before


def test_mode_restores_after_an_error(model):
    before = modes(model)
    with pytest.raises(RuntimeError, match="inside"), mode(model, training=False):
        raise RuntimeError("inside")
    assert modes(model) == before


def test_modes_nest(model):
    with mode(model, training=False):
        with mode(model, training=True):
            assert all(modes(model))
        assert not any(modes(model))


def test_a_plain_function_has_no_mode():
    with mode(torch.sin, training=True):
        assert torch.sin(torch.zeros(1)) == 0


def damage(model):
    """What a careless probe does: a training step, a mode change, new statistics and gradients."""
    model.train()
    with global_stream(Noise(2)):
        model(Noise(0).normal(8, 3)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.eval()


def snapshot(model):
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return state, gradients, modes(model)


@pytest.mark.parametrize("fails", [False, True])
def test_unchanged_restores_parameters_buffers_gradients_and_modes(model, fails):
    model[0].weight.grad = Noise(1).normal(4, 3)
    before = snapshot(model)
    identities = [id(p) for p in model.parameters()]
    try:
        with unchanged(model):
            damage(model)
            assert not torch.equal(model[0].weight, before[0]["0.weight"])
            assert model[1].num_batches_tracked == 1
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    after = snapshot(model)
    assert all(torch.equal(after[0][k], v) for k, v in before[0].items())
    assert torch.equal(after[1][0], before[1][0])
    assert after[1][1:] == [None] * (len(identities) - 1)
    assert after[2] == before[2]
    assert [id(p) for p in model.parameters()] == identities, "optimisers hold these"


@pytest.mark.parametrize(
    "make, same",
    [
        (lambda: nn.Linear(2, 2), True),
        (lambda: nn.Sequential(nn.LayerNorm(2), nn.GELU(), nn.Dropout(0.0)), True),
        (lambda: nn.Dropout(0.1), False),
        (lambda: nn.Sequential(nn.BatchNorm1d(2)), False),
        (lambda: nn.InstanceNorm1d(2), True),
        (lambda: nn.RReLU(), False),
        (lambda: nn.GRU(2, 2, num_layers=2, dropout=0.1), False),
        (lambda: nn.MultiheadAttention(2, 1), True),
        (lambda: type("Theirs", (nn.Module,), {})(), False),
        (lambda: lambda x: x, False),
    ],
)
def test_who_is_the_same_in_both_modes(make, same):
    with global_stream(Noise(0)):
        model = make()
    assert same_in_both_modes(model) is same
