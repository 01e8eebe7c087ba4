"""The classifier: its formula, its split into embed and classify, its draws and its messages."""

import dataclasses
import inspect
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from robustssm.core.rng import Noise
from robustssm.core.types import Classifier, SplitClassifier
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import Normalize, SequenceClassifier, SequenceClassifierConfig
from robustssm.models.tokens import LegacyRaster, Patches, Raster

SHAPE = (3, 4, 6)


@pytest.fixture
def config(neighbour):
    return SequenceClassifierConfig(layer=neighbour, d_model=8, num_layers=2)


def build(config, shape=SHAPE, num_classes=5, seed=0):
    return config.build(shape=shape, num_classes=num_classes, noise=Noise(seed))


def inputs(*shape):
    return Noise(9).uniform(3, *(shape or SHAPE))


VARIANTS = {
    "defaults": {},
    "norms": {"input_norm": True, "final_norm": False},
    "last": {"pooling": "last"},
    "patches": {"tokens": Patches(side=2)},
    "legacy": {"tokens": LegacyRaster()},
    "normalize": {"normalize": Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))},
    "post": {"block": BlockConfig(norm="post", activation="none")},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_forward_is_classify_of_embed_bit_for_bit(config, changes):
    model, x = build(dataclasses.replace(config, **changes)), inputs()
    tokens = model.embed(x)
    assert tokens.shape == (3, model.config.tokens.length(SHAPE), 8)
    assert torch.equal(model(x), model.classify(tokens))
    assert isinstance(model, Classifier) and isinstance(model, SplitClassifier)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("normed", [True, False])
def test_classifier_is_its_formula(config, pooling, normed):
    config = dataclasses.replace(config, pooling=pooling, input_norm=normed, final_norm=normed)
    model, x = build(config).double(), inputs().double()
    for norm in (model.input_norm, model.final_norm):
        assert isinstance(norm, nn.LayerNorm) is normed
    h = x.flatten(2).transpose(1, 2) @ model.input.weight.T + model.input.bias
    h = model.input_norm(h)
    for block in model.blocks:
        h = h + block.mixing(nn.functional.gelu(block.layer.reference(block.norm(h))))
    h = model.final_norm(h)
    pooled = h.sum(1) / 24 if pooling == "mean" else h[:, 23]
    expected = pooled @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [SHAPE, (10, 3)])
def test_first_act_is_to_normalise_each_channel(config, shape):
    normalize = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    plain = build(config, shape)
    model = build(dataclasses.replace(config, normalize=normalize), shape)
    x = inputs(*shape)
    axis = 1 if len(shape) == 3 else 2
    channels = zip(x.unbind(axis), normalize.mean, normalize.std, strict=True)
    expected = torch.stack([(channel - m) / s for channel, m, s in channels], axis)
    torch.testing.assert_close(model(x), plain(expected))


def test_one_mean_stands_for_all_channels(config):
    one = dataclasses.replace(config, normalize=Normalize(mean=(0.4,), std=(0.3,)))
    all_ = dataclasses.replace(config, normalize=Normalize(mean=(0.4,) * 3, std=(0.3,) * 3))
    assert torch.equal(build(one)(inputs()), build(all_)(inputs()))


def test_released_token_order_changes_colour_images_only(config):
    legacy = dataclasses.replace(config, tokens=LegacyRaster())
    assert not torch.allclose(build(config)(inputs()), build(legacy)(inputs()))
    grey = (1, 4, 6)
    assert torch.equal(build(config, grey)(inputs(*grey)), build(legacy, grey)(inputs(*grey)))


def test_same_noise_same_parameters(config):
    one, two, three = build(config), build(config), build(config, seed=1)
    for name, p in one.named_parameters():
        assert torch.equal(p, two.get_parameter(name))
    assert not torch.equal(one.input.weight, three.input.weight)
    assert not torch.equal(one.blocks[0].mixing.weight, one.blocks[1].mixing.weight)


@pytest.mark.parametrize(
    ("changes", "arguments", "changed"),
    [
        ({"num_layers": 3}, {}, "blocks.2"),
        ({"input_norm": True, "final_norm": False, "pooling": "last"}, {}, "norm"),
        ({"tokens": Patches(side=2)}, {}, "input."),
        ({}, {"num_classes": 7}, "head"),
        ({}, {"shape": (1, 4, 6)}, "input."),
        ({"block": BlockConfig(mixing="none")}, {}, "mixing"),
    ],
)
def test_changing_one_component_leaves_the_draws_of_the_others_alone(
    config, changes, arguments, changed
):
    before = build(config)
    after = build(dataclasses.replace(config, **changes), **arguments).state_dict()
    others = [name for name, _ in before.named_parameters() if changed not in name]
    assert len(others) >= 10
    for name in others:
        assert torch.equal(before.get_parameter(name), after[name]), name


class Recorder(nn.Module):
    """A layer that notes when it is frozen, and whether weights would get a gradient then."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)
        self.is_frozen = False

    def forward(self, x):
        assert not (self.is_frozen and self.weight.requires_grad)
        return self.weight * x + self.fixed

    @contextmanager
    def frozen(self):
        self.is_frozen = True
        try:
            yield
        finally:
            self.is_frozen = False


def test_frozen_reaches_every_layer_and_ends_with_its_context(config):
    model, x = build(config), inputs().requires_grad_()
    recorder = model.blocks[1].layer = Recorder()
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    with model.frozen():
        assert recorder.is_frozen
        assert not any(p.requires_grad for p in model.parameters())
        assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], expected)
    with pytest.raises(RuntimeError, match="inside"), model.frozen():
        raise RuntimeError("inside")
    assert not recorder.is_frozen
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {"blocks.1.layer.fixed"}


def test_parameter_count_is_the_sum_of_its_parts(config):
    layer, mixing, norm = 2 * 8 * 8, 8 * 8 + 8, 2 * 8
    expected = (3 * 8 + 8) + 2 * (layer + mixing + norm) + norm + (8 * 5 + 5)
    model = build(config)
    assert model.parameter_count() == expected
    model.head.requires_grad_(False)
    assert model.parameter_count() == expected - 45
    model.phase = nn.Parameter(torch.zeros(4, dtype=torch.complex64))
    assert model.parameter_count() == expected - 45 + 8


def test_roles_carry_full_names(config):
    model = build(dataclasses.replace(config, input_norm=True))
    roles = model.roles()
    assert set(roles) <= {name for name, _ in model.named_parameters()}
    assert roles["blocks.1.layer.before.weight"] == "dynamics"
    assert roles["blocks.0.norm.bias"] == roles["input_norm.weight"] == "norm"
    assert "head.weight" not in roles and "blocks.0.mixing.weight" not in roles


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 3, 6, 4), (2, 24, 3), (3, 4, 6)])
def test_an_input_of_another_shape_is_refused(config, shape):
    model = build(config)
    message = rf"takes inputs of shape \(batch, 3, 4, 6\); got \({', '.join(map(str, shape))}\)"
    for function in (model, model.embed):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape))


def test_stored_bytes_are_refused(config):
    embed = inspect.unwrap(SequenceClassifier.embed)  # beyond the type check of the tests
    with pytest.raises(ValueError, match=r"floating-point inputs; got torch\.uint8"):
        embed(build(config), torch.zeros(2, *SHAPE, dtype=torch.uint8))


def test_what_does_not_fit_is_refused_when_built(config):
    with pytest.raises(ValueError, match=r"divide the height and width.*got 4 x 6"):
        build(dataclasses.replace(config, tokens=Patches(side=4)))
    with pytest.raises(ValueError, match=r"1 entry or 3.*got 2"):
        build(dataclasses.replace(config, normalize=Normalize(mean=(0.0, 0.0), std=(1.0, 1.0))))
    with pytest.raises(ValueError, match="be at least 2; got 1"):
        build(config, num_classes=1)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"layer=\.\.\.\)` must be given"):
        SequenceClassifierConfig()
    with pytest.raises(ValueError, match="the same length"):
        Normalize(mean=(0.1, 0.2), std=(1.0,))
    with pytest.raises(ValueError, match="greater than 0; got 0"):
        Normalize(mean=(0.1,), std=(0.0,))


def test_order_of_tokens_defaults_to_raster(config):
    assert config.tokens == Raster()
