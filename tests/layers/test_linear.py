"""The house's linear layer: torch's in everything but the product."""

import copy
import pickle

import pytest
import torch
from torch import nn

from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.linear import Linear
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.models.block import BlockConfig, linear
from robustssm.ops.kernels import cpu_dense, native

compiled = pytest.mark.skipif(native.state().width < 8, reason="torch is the faster one")


def pair(inputs=64, outputs=96, *, bias=True):
    """One of each, drawn alike."""
    made = []
    for kind in (Linear, nn.Linear):
        with global_stream(Noise(3)):
            made.append(kind(inputs, outputs, bias=bias))
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_torch_bit_for_bit(bias):
    ours, torchs = pair(bias=bias)
    assert isinstance(ours, nn.Linear) and repr(ours) == repr(torchs)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())


@pytest.mark.parametrize("rows", [(3,), (40, 50), (2, 3, 400), (0, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(rows, dtype):
    ours, torchs = (layer.to(dtype) for layer in pair())
    x, g = Noise(0).normal(*rows, 64).to(dtype), Noise(1).normal(*rows, 96).to(dtype)
    outcomes = []
    for layer in (ours, torchs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        outcomes.append((y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)))
    for one, other in zip(*outcomes, strict=True):
        largest = float(other.detach().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=4e-6 * largest)


def test_one_row_without_a_batch():
    ours, torchs = pair()
    x = Noise(0).normal(64)
    torch.testing.assert_close(ours(x), torchs(x))


@compiled
def test_a_frozen_layer_computes_no_weight_gradient(monkeypatch):
    ours, _ = pair()
    ours.requires_grad_(False)
    monkeypatch.setattr(cpu_dense, "_sums", None)
    x = Noise(0).normal(8, 100, 64).requires_grad_()
    (dx,) = torch.autograd.grad(ours(x).sum(), x)
    torch.testing.assert_close(dx, ours.weight.sum(0).expand_as(dx))


def test_copies_and_pickles():
    ours, _ = pair()
    x = Noise(0).normal(40, 50, 64)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: MambaConfig().build(d_model=32, length=9, noise=Noise(0)),
        lambda: MegaConfig().build(d_model=32, length=9, noise=Noise(0)),
        lambda: AdaptiveScalingConfig(form="scale_shift").build(d_model=32, noise=Noise(0)),
        lambda: BlockConfig(mixing="glu", feed_forward=8).build(
            MambaConfig(), d_model=32, length=9, noise=Noise(0)
        ),
        lambda: linear(32, 5, noise=Noise(0)),
    ],
    ids=["mamba", "mega", "adaptive_scaling", "block", "linear"],
)
def test_layers_are_made_of_it(build):
    maps = [part for part in build().modules() if isinstance(part, nn.Linear)]
    assert maps and all(type(part) is Linear for part in maps)


def test_hooks_on_the_projections_of_mamba_are_called():
    layer = MambaConfig().build(d_model=8, length=9, noise=Noise(0))
    x, seen = Noise(1).normal(2, 9, 8), {}
    before = layer(x)
    for name in ("in_proj", "x_proj", "out_proj"):
        part = getattr(layer, name)
        part.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.shape}))
    assert torch.equal(layer(x), before)
    assert seen == {"in_proj": (2, 9, 32), "x_proj": (2, 9, 33), "out_proj": (2, 9, 8)}
    layer.in_proj.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
    assert not layer(x).any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parts_are_columns_of_the_whole(bias, dtype):
    layer, _ = pair(16, 96, bias=bias)
    layer.to(dtype)
    x = Noise(5).normal(64, 40, 16).to(dtype)
    pull = Noise(6).normal(64, 40, 96).to(dtype)
    found = []
    for whole in (lambda at: layer(at), lambda at: torch.cat(layer.parts(at, 3), -1)):
        at = x.clone().requires_grad_()
        y = whole(at)
        found.append((y, *torch.autograd.grad(y, (at, *layer.parameters()), pull)))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)
