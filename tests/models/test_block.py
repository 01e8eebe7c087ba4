"""Blocks against their formulas, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustssm.core.config import from_dict, to_dict
from robustssm.core.rng import Noise, global_stream
from robustssm.models.block import BlockConfig

D = 6
TABLE_3 = BlockConfig(norm="post", activation="gelu", mixing_activation="gelu")
RELEASED = BlockConfig(norm="post", activation="none")
MODERN = BlockConfig()
BARE = BlockConfig(norm="none", residual=False, activation="none", mixing="none")


@pytest.fixture
def make(neighbour):
    """Builds a block in float64, norms with weights of their own, and an input for it."""

    def made(config, seed=0):
        block = config.build(neighbour, d_model=D, length=5, noise=Noise(seed)).double()
        for index, module in enumerate(block.modules()):
            if isinstance(module, nn.LayerNorm):
                fork = Noise(1).fork(index)
                module.weight.data = fork.uniform(D, low=0.5, high=2.0).double()
                module.bias.data = fork.normal(D).double()
        return block, Noise(2).normal(3, 5, D).double()

    return made


def layer_norm(h, norm):
    centred = h - h.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * norm.weight + norm.bias


def gelu(h):
    return h * torch.special.ndtr(h)


def affine(h, linear):
    return h @ linear.weight.T + linear.bias


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_table_3_of_the_paper(make):
    block, h = make(TABLE_3)
    branch = gelu(affine(gelu(block.layer.reference(h)), block.mixing))
    same(block(h), layer_norm(h + branch, block.norm))


def test_the_released_code_has_no_activation(make):
    block, h = make(RELEASED)
    same(block(h), layer_norm(h + affine(block.layer.reference(h), block.mixing), block.norm))
    block.norm = nn.Identity()  # what is left must be affine
    zero = block(torch.zeros_like(h))
    same(block(2 * h) - zero, 2 * (block(h) - zero))


def test_a_modern_block_normalises_before_the_layer(make):
    block, h = make(MODERN)
    same(block(h), h + affine(gelu(block.layer.reference(layer_norm(h, block.norm))), block.mixing))


def test_a_bare_block_is_its_layer(make):
    block, h = make(BARE)
    assert torch.equal(block(h), block.layer(h))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"layer"}


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_without_a_residual_the_input_is_not_added(make, norm):
    block, h = make(BlockConfig(norm=norm, residual=False))
    branch = affine(
        gelu(block.layer(layer_norm(h, block.norm) if norm == "pre" else h)), block.mixing
    )
    same(block(h), layer_norm(branch, block.norm) if norm == "post" else branch)


def test_without_a_norm_the_residual_stays(make):
    block, h = make(BlockConfig(norm="none"))
    same(block(h), h + affine(gelu(block.layer(h)), block.mixing))


@pytest.mark.parametrize(
    ("activation", "function"),
    [("none", lambda h: h), ("gelu", gelu), ("relu", torch.relu), ("silu", F.silu)],
)
def test_activation_follows_the_layer(make, activation, function):
    block, h = make(BlockConfig(norm="none", residual=False, mixing="none", activation=activation))
    same(block(h), function(block.layer(h)))


def test_glu_gates_one_half_with_the_other(make):
    block, h = make(BlockConfig(norm="none", mixing="glu"))
    both = affine(gelu(block.layer(h)), block.mixing.linear)
    assert both.shape[-1] == 2 * D
    same(block(h), h + both[..., :D] * torch.sigmoid(both[..., D:]))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_feed_forward_is_a_second_branch_with_its_own_norm(make, norm):
    block, h = make(BlockConfig(norm=norm, feed_forward=11))
    first, _ = make(BlockConfig(norm=norm))
    first.load_state_dict(block.state_dict(), strict=False)
    middle = first(h)
    assert block.feed_forward.expand.out_features == 11

    def feed_forward(z):
        return affine(gelu(affine(z, block.feed_forward.expand)), block.feed_forward.contract)

    own = block.feed_forward_norm
    if norm == "pre":
        same(block(h), middle + feed_forward(layer_norm(middle, own)))
    else:
        same(block(h), layer_norm(middle + feed_forward(middle), own))


def test_dropout_zeroes_branch_entries_in_train_mode_only(make):
    config = BlockConfig(norm="none", residual=False, dropout=0.25)
    block, h = make(config)
    plain, _ = make(BlockConfig(norm="none", residual=False))
    assert torch.equal(block.eval()(h), plain(h))
    with global_stream(Noise(5)):
        dropped = block.train()(h.repeat(100, 1, 1))
    kept = dropped != 0
    assert abs(kept.double().mean() - 0.75) < 0.02
    same(dropped[kept], (plain(h).repeat(100, 1, 1) / 0.75)[kept])


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (BlockConfig(mixing="glu"), "layer"),
        (BlockConfig(mixing="none"), "layer"),
        (BlockConfig(feed_forward=4), "layer"),
        (BlockConfig(feed_forward=4), "mixing"),
        (BlockConfig(norm="post", activation="relu", dropout=0.1), "mixing"),
    ],
)
def test_changing_one_part_leaves_the_draws_of_the_others_alone(make, changed, part):
    before, after = make(MODERN)[0].get_submodule(part), make(changed)[0].get_submodule(part)
    for p, q in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(p, q)


def test_layer_and_mixing_draw_from_different_streams(make):
    block, _ = make(MODERN)
    assert not torch.equal(block.layer.here.weight, block.mixing.weight)


@pytest.mark.parametrize("config", [TABLE_3, RELEASED, MODERN, BARE])
def test_settings_survive_json(config):
    assert from_dict(BlockConfig, to_dict(config)) == config


def test_an_activation_of_a_mixing_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"must follow a mixing.*Choose a mixing"):
        BlockConfig(mixing="none", mixing_activation="gelu")


@pytest.mark.parametrize(
    "wrong", [{"norm": "batch"}, {"dropout": 1.0}, {"feed_forward": -1}, {"mixing": "conv"}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"`BlockConfig\({next(iter(wrong))}=\.\.\.\)` must be"):
        BlockConfig(**wrong)
