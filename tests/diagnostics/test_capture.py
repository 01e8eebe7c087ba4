"""Captured parts are what the formulas of the model say, and the model does not notice."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.core.errors import Inapplicable
from robustssm.core.observation import observed, observing
from robustssm.core.rng import Noise, global_stream
from robustssm.diagnostics.capture import Place, capture, layers_of
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.bidirectional import BidirectionalConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.ops.kernels import native

LENGTH, WIDTH = 9, 16  # wide enough for blocks that run as one operation when frozen
SCALED = S4Config(d_state=4, scaling=AdaptiveScalingConfig(activation="sigmoid"))
PAPER = BlockConfig(norm="post", activation="gelu", mixing_activation="gelu")
BARE = BlockConfig(norm="none", residual=False, activation="none", mixing="none")
LAYERS = {
    "s4": SCALED,
    "s5": S5Config(d_state=4, scaling=AdaptiveScalingConfig()),
    "mega": MegaConfig(d_state=2, scaling=AdaptiveScalingConfig()),
    "mamba": MambaConfig(d_state=2, scaling=AdaptiveScalingConfig(activation="tanh")),
    "mamba without scaling": MambaConfig(d_state=2),
    "attention": AttentionConfig(heads=2),
    "bidirectional": BidirectionalConfig(layer=S4DConfig(d_state=4)),
}


def classifier(layer=SCALED, *, block=PAPER, num_layers=2):
    made = SequenceClassifierConfig(
        layer=layer, d_model=WIDTH, num_layers=num_layers, block=block, input_norm=True
    )
    return made.build(shape=(LENGTH, 2), num_classes=3, noise=Noise(0)).double()


def inputs(batch=3):
    return Noise(1).normal(batch, LENGTH, 2, dtype=torch.float64)


def parts(found, layer=0):
    return [each.place.part for each in found if each.place.layer == layer]


def tensors(found):
    return [tensor for each in found for tensor in (each.before, each.after)]


def convolved(layer, u):
    """The SSM of an S4 layer, by numpy's convolution."""
    kernel = layer.kernel(u.shape[1], dtype=torch.float64).detach().numpy()
    skip = layer.D.detach().numpy()
    rows = [
        [np.convolve(x[:, c], kernel[c])[: len(x)] + skip[c] * x[:, c] for c in range(x.shape[1])]
        for x in u.numpy()
    ]
    return torch.from_numpy(np.array(rows)).transpose(1, 2)


@torch.no_grad()
def test_s4_with_adaptive_scaling_by_hand():
    model, x = classifier(), inputs()
    h = F.layer_norm(model.embed(x), (WIDTH,))
    expected = []
    for block in model.blocks:
        start = h
        y = convolved(block.layer, h)
        expected.append(("ssm", h, y))
        scaled = torch.sigmoid(y @ block.layer.scaling.scale.weight.T) * y
        expected += [("ads", y, scaled), ("layer", h, scaled)]
        for part, f in (("activation", F.gelu), ("linear", block.mixing), ("activation", F.gelu)):
            expected.append((part, scaled, f(scaled)))
            scaled = f(scaled)
        expected.append(("residual", start, start + scaled))
        h = F.layer_norm(start + scaled, (WIDTH,))
        expected.append(("norm", start + scaled, h))
    found = capture(model, x)
    assert [each.place.part for each in found] == [part for part, *_ in expected]
    for each, (_, before, after) in zip(found, expected, strict=True):
        torch.testing.assert_close(each.before, before, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(each.after, after, rtol=1e-9, atol=1e-12)
    assert [found[n].place[2] for n in (0, 3, 5, 8, 11, 13)] == [0, 0, 1, 0, 0, 1]
    assert found[5].place == Place(0, "activation", 1)
    paths = dict.fromkeys(each.path for each in found)
    assert list(paths) == ["blocks.0.layer", "blocks.0", "blocks.1.layer", "blocks.1"]


@torch.no_grad()
def test_mamba_by_hand():
    model, x = classifier(MambaConfig(d_state=2), block=BARE, num_layers=1), inputs()
    layer = model.blocks[0].layer
    found = {each.place.part: each for each in capture(model, x)}
    h = found["projection"].before
    v, z = layer.in_proj(h).chunk(2, -1)
    u = F.silu(layer.conv1d(v.mT)[..., :LENGTH].mT)
    y = found["ssm"].after
    gated = y * F.silu(z)
    for part, before, after in (
        ("projection", F.layer_norm(model.embed(x), (WIDTH,)), v),
        ("convolution", v, u),
        ("ssm", u, y),
        ("gate", y, gated),
        ("linear", gated, layer.out_proj(gated)),
        ("layer", h, layer.reference(h)),
    ):
        torch.testing.assert_close(found[part].before, before, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[part].after, after, rtol=1e-9, atol=1e-12)
    assert list(found) == ["projection", "convolution", "ssm", "gate", "linear", "layer"]


@torch.no_grad()
def test_mega_by_hand():
    model, x = classifier(LAYERS["mega"], block=BARE, num_layers=1), inputs()
    layer, found = model.blocks[0].layer, capture(model, x)
    by_part = {(each.place.part, each.place.occurrence): each for each in found}
    h, ssm = by_part["ssm", 0].before, by_part["ssm", 0].after
    torch.testing.assert_close(ssm, layer.average(h))
    torch.testing.assert_close(by_part["ads", 0].after, torch.relu(layer.scaling.scale(ssm)) * ssm)
    torch.testing.assert_close(by_part["attention", 0].before, F.silu(layer.value(h)))
    linear, norm = (layer.hidden, layer.expand, layer.contract), (layer.norm, layer.ffn_norm)
    for part, modules in (("linear", linear), ("norm", norm)):
        for occurrence, module in enumerate(modules):
            each = by_part[part, occurrence]
            torch.testing.assert_close(each.after, module(each.before))
    residual = by_part["residual", 0]
    assert torch.equal(residual.after, residual.before + by_part["linear", 2].after)
    assert torch.equal(by_part["layer", 0].after, by_part["norm", 1].after)
    torch.testing.assert_close(by_part["layer", 0].after, layer.reference(h))


@torch.no_grad()
def test_both_directions_are_in_the_order_of_time():
    model, x = classifier(LAYERS["bidirectional"], block=BARE, num_layers=1), inputs()
    layer = model.blocks[0].layer
    behind, ahead, whole = capture(model, x)
    assert [behind.path, ahead.path] == ["blocks.0.layer.behind", "blocks.0.layer.ahead"]
    assert [behind.place, ahead.place] == [Place(0, "ssm", 0), Place(0, "ssm", 1)]
    assert torch.equal(behind.before, whole.before) and torch.equal(ahead.before, whole.before)
    torch.testing.assert_close(ahead.after, convolved(layer.ahead, whole.before))
    backward = convolved(layer.behind, whole.before.flip(1)).flip(1)
    torch.testing.assert_close(behind.after, backward)
    torch.testing.assert_close(whole.after, ahead.after + behind.after)


@pytest.mark.parametrize("name", LAYERS)
def test_parts_follow_one_another_and_do_not_change_the_logits(name):
    model, x = classifier(LAYERS[name]).eval(), inputs()
    told = capture(model, x)
    assert {each.place.layer for each in told} == {0, 1}
    assert {"layer", "residual", "norm"} <= set(parts(told, 1))
    for each in told:
        if each.place.part == "layer":
            block = model.blocks[each.place.layer]
            with torch.no_grad():
                torch.testing.assert_close(each.after, block.layer.reference(each.before))
    with torch.no_grad():
        last = told[-1].after
        torch.testing.assert_close(model.head(model.final_norm(last).mean(1)), model(x))


@pytest.mark.parametrize("name", LAYERS)
def test_two_captures_and_a_copy_give_equal_values(name):
    model, x = classifier(LAYERS[name]), inputs()
    first, second = capture(model, x), capture(copy.deepcopy(model), x)
    kept = [tensor.clone() for tensor in tensors(first)]
    assert [each.place for each in first] == [each.place for each in second]
    assert [each.path for each in first] == [each.path for each in second]
    for one, other, before in zip(tensors(first), tensors(second), kept, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, before), "later passes must not write into what was kept"


@pytest.mark.parametrize("block", [PAPER, BlockConfig(feed_forward=8)], ids=["post", "pre"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_model_tells_of_the_same_parts_and_values(name, block, monkeypatch):
    model, x = classifier(LAYERS[name], block=block).float(), inputs().float()
    plain = capture(model, x)
    with model.frozen():
        frozen = capture(model, x)
        fused = []
        monkeypatch.setattr(
            "robustssm.models.block.residual_block", lambda h, _: fused.append(h) or h
        )
        model(x)
    assert len(fused) == (2 if name == "s4" and native.state().level else 0), (
        "the fused form is back"
    )
    assert [each.place for each in frozen] == [each.place for each in plain]
    for one, other in zip(tensors(frozen), tensors(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, x = classifier(block=BlockConfig(dropout=0.5)), inputs()
    model.train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(False)
    calls = []
    handle = model.blocks[0].layer.register_forward_hook(lambda *_: calls.append(1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    found = capture(model, x)
    assert calls == [1], "hooks run, and stay"
    assert [len(m._forward_hooks) for m in model.modules()].count(1) == 1
    handle.remove()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random), "dropout must not draw"
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(tensor.requires_grad for tensor in tensors(found))
    assert not observed()


def test_an_error_inside_leaves_no_listener():
    model = classifier()
    model.train()
    with pytest.raises(ValueError, match="takes inputs of shape"):
        capture(model, torch.zeros(2, 5, 2, dtype=torch.float64))
    assert not observed() and model.training and model.blocks[0].layer.training


def test_somebody_else_who_listens_hears_again_afterwards():
    model, x, outer = classifier(), inputs(), []
    with observing(lambda *told: outer.append(told)):
        capture(model, x)
        assert not outer
        model(x)
    assert len(outer) == len(capture(model, x))


def test_other_models_that_run_meanwhile_are_left_out():
    class Pair(nn.Module):
        """A model and one that it only asks."""

        def __init__(self):
            super().__init__()
            self.model, self._asked = classifier(), [classifier()]

        def forward(self, x):
            return self.model(x) - self._asked[0](x)

    pair = Pair()
    assert len(capture(pair, inputs())) == len(capture(pair.model, inputs()))


def test_what_is_overwritten_in_place_was_kept_before():
    def stack(inplace):
        layers = [
            S4DConfig(d_state=4).build(d_model=2, length=LENGTH, noise=Noise(n)) for n in (1, 2)
        ]
        return nn.Sequential(layers[0], nn.ReLU(inplace=inplace), layers[1]).double()

    found = capture(stack(inplace=True), inputs())
    assert all(map(torch.equal, tensors(found), tensors(capture(stack(False), inputs()))))
    assert (found[0].after < 0).any(), "before the ReLU, not after it"


def test_layers_are_found_in_order_and_not_inside_one_another():
    model = classifier(LAYERS["bidirectional"], num_layers=11)
    assert list(layers_of(model)) == [f"blocks.{n}.layer" for n in range(11)]
    found = capture(model, inputs())
    assert [each.place.layer for each in found] == sorted(each.place.layer for each in found)
    assert parts(found, 1) == parts(found, 10)
    layer, h = model.blocks[0].layer, Noise(2).normal(2, LENGTH, WIDTH, dtype=torch.float64)
    assert layers_of(layer) == {"": layer}
    assert [each.path for each in capture(layer, h)] == ["behind", "ahead"]


def test_a_model_without_layers_is_refused_by_the_names_of_what_it_has():
    with global_stream(Noise(0)):
        model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    for ask in (layers_of, lambda model: capture(model, inputs())):
        with pytest.raises(Inapplicable, match=r"Sequential has none, only Linear, ReLU\. Build"):
            ask(model)
    with pytest.raises(Inapplicable, match="ReLU has none, only itself"):
        layers_of(nn.ReLU())


@torch.no_grad()
def test_inference_mode_does_not_matter():
    model, x = classifier(), inputs()
    with torch.inference_mode():
        found = tensors(capture(model, x))
    assert all(map(torch.equal, found, tensors(capture(model, x))))
