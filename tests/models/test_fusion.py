"""Blocks as one operation: the same numbers as part by part, and only where nobody can tell."""

import pytest
import torch

from robustssm.core.rng import Noise, global_stream
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.models.block import BlockConfig
from robustssm.models.presets import modern, paper_v1, released_code
from robustssm.ops.kernels import native
from robustssm.ops.residual_block import residual_block

pytestmark = pytest.mark.skipif(native.state().level is None, reason="no compiled kernels")

SCALING = AdaptiveScalingConfig(activation="sigmoid", form="scale_shift", bias=True)
LAYERS = [S4Config(d_state=4), S4DConfig(d_state=4), DSSConfig(d_state=4, scaling=SCALING)]
BLOCKS = [
    BlockConfig(),
    BlockConfig(norm="post", activation="none"),
    BlockConfig(norm="post", mixing_activation="gelu"),
    BlockConfig(norm="none", residual=False, activation="none", mixing="none"),
    BlockConfig(feed_forward=8),
]


def outcome(block, h):
    h = h.detach().clone().requires_grad_()
    out = block(h)
    weight = Noise(7).normal(*out.shape)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), h)


def made(config, layer, length=40):
    return config.build(layer, d_model=16, length=length, noise=Noise(0))


@pytest.fixture
def calls(monkeypatch):
    """Counts blocks that ran as one operation."""
    seen = []
    monkeypatch.setattr(
        "robustssm.models.block.residual_block",
        lambda h, whole: seen.append(1) or residual_block(h, whole),
    )
    return seen


@pytest.mark.parametrize("config", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_frozen_blocks_give_the_same_numbers(config, layer, calls):
    block, h = made(config, layer), Noise(1).normal(3, 40, 16)
    plain = outcome(block, h)
    assert not calls, "parameters might need gradients"
    with block.frozen(), block.layer.frozen():
        fused = outcome(block, h)
    assert calls
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


@pytest.mark.parametrize("make", [paper_v1, released_code])
@pytest.mark.parametrize("ads", [None, "tanh"])
def test_published_models_run_in_one_operation_per_block(make, ads, calls):
    model = make("s4", "mnist", ads=ads).build(shape=(1, 6, 6), num_classes=4, noise=Noise(0))
    x = Noise(1).uniform(2, 1, 6, 6)
    plain = outcome(model, x)
    with model.frozen():
        fused = outcome(model, x)
    assert len(calls) == 2
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())


def test_a_changed_parameter_is_noticed_wherever_it_is(calls):
    config = modern("s4", d_model=16, num_layers=1, d_state=4, ads="relu")
    model = config.build(shape=(1, 4, 4), num_classes=3, noise=Noise(0))
    x = Noise(1).uniform(2, 1, 4, 4)
    with model.frozen():
        before = model(x)
        assert torch.equal(model(x), before)
        for name, parameter in model.blocks.named_parameters():
            with torch.no_grad():
                parameter.add_(0.1)
            after = model(x)
            with native.without():
                plain = model(x)
            assert not torch.equal(after, before), name
            torch.testing.assert_close(after, plain, rtol=1e-4, atol=1e-5)
            before = after
    assert len(calls) > 3


def test_what_is_kept_dies_with_the_context(calls):
    block, h = made(BLOCKS[0], LAYERS[0]), Noise(1).normal(2, 40, 16)
    with block.frozen():
        before = block(h)
    assert block._kept is None
    with torch.no_grad():
        block.mixing.weight.mul_(2)
    with block.frozen():
        assert not torch.equal(block(h), before)


def test_hooks_hear_every_part(calls):
    block, h = made(BLOCKS[0], LAYERS[0]), Noise(1).normal(2, 40, 16)
    heard = []
    handles = [
        block.mixing.register_forward_hook(lambda *_: heard.append("mixing")),
        torch.nn.modules.module.register_module_forward_hook(lambda *_: heard.append("any")),
    ]
    with block.frozen():
        for handle in handles:
            block(h)
            handle.remove()
        assert "mixing" in heard and "any" in heard and not calls
        block(h)
    assert len(calls) == 1


def test_parts_that_it_does_not_know_are_called(calls):
    h = Noise(1).normal(2, 40, 16)
    for config in (
        BlockConfig(mixing="glu"),
        BlockConfig(activation="silu"),
        BlockConfig(dropout=0.5),
    ):
        block = made(config, LAYERS[0]).train()
        with block.frozen(), global_stream(Noise(0)):
            block(h)
    assert not calls
    with block.eval().frozen():
        block(h)
        assert len(calls) == 1, "no dropout in eval mode"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            block(h)
        with native.without():
            block(h)
    with block.double().frozen():
        block(h.double())
    assert len(calls) == 1
