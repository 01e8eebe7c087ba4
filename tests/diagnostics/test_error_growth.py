"""Growth of perturbations: against what the model itself does, and bounds against search."""

import pytest
import torch

from robustssm.core.errors import Inapplicable
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.diagnostics.error_growth import ErrorGrowth
from robustssm.diagnostics.systems import layer_inputs, systems_of
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.bidirectional import BidirectionalConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.s4d import S4DConfig
from robustssm.records import violations
from tests.diagnostics.looked_at import (
    STRUCTURES,
    Selfish,
    left_alone,
    model,
    model_of,
    subject,
    wrapped,
)

STEERED = 6.0
"""Factor on the map that chooses Mamba's parameters, so that they shift with the input."""


def steered(**settings):
    network = model("mamba", **settings)
    with torch.no_grad():
        for block in network.blocks:
            block.layer.x_proj.weight *= STEERED
    return network


@pytest.mark.parametrize("structure", STRUCTURES)
def test_shares_add_up_and_bounds_hold(structure):
    result = ErrorGrowth().measure(subject(model(structure)))
    assert not violations(result)
    found = {q.name: q for q in result.quantities}
    parts = [found[name].values for name in ("frozen", "shift", "cross")]
    assert all(sum(shares) == pytest.approx(1, abs=1e-9) for shares in zip(*parts, strict=True))
    for measured, reached, certified in zip(
        *(found[name].values for name in ("measured", "reached", "certified")), strict=True
    ):
        assert 0 < measured <= reached * (1 + 1e-12)
        if structure == "mamba":
            assert reached < certified < 50 * reached
        else:
            assert reached == pytest.approx(certified, rel=1e-9)
    if structure == "mamba":
        assert all(value > 0 for value in found["shift"].values)
    else:
        assert found["shift"].values == found["cross"].values == (0.0, 0.0)
    assert found["growth"].axes[1].labels == tuple(str(t) for t in range(12))


def test_a_steered_mamba_shifts_its_parameters_and_stays_below_its_bounds():
    seen = subject(steered(), examples=4, eps=0.3)
    result = ErrorGrowth(steps=20).measure(seen)
    assert not violations(result)
    assert max(result.quantity("shift").values) > 0.02
    by_position = [result.quantity(f"{part}_by_position") for part in ("frozen", "shift", "cross")]
    for shares in zip(*(q.values for q in by_position), strict=True):
        assert shares == (None,) * 3 or sum(shares) == pytest.approx(1, abs=1e-6)


def test_search_of_the_whole_box_never_passes_what_is_certified():
    network = steered(num_layers=1)
    seen = subject(network, examples=4, eps=0.3)
    result = ErrorGrowth().measure(seen)
    inputs, moved = (layer_inputs(network, x) for x in (seen.x, seen.x_adv))
    (system,) = systems_of(network, inputs)
    u, scan = system.driven.u, system.selective()
    radius = (system.at(moved[0][0]).u - u).abs().flatten(1).amax(1)[:, None, None]
    largest = torch.zeros(4, dtype=torch.float64)
    for draw in range(200):
        du = radius * Noise(draw).signs(*u.shape).double()
        largest = torch.maximum(largest, (scan.run(u + du) - scan.run(u)).abs().amax((1, 2)))
    assert largest.mean().item() <= result.quantity("reached").values[0]  # ascent beats chance
    assert result.quantity("reached").values[0] <= result.quantity("certified").values[0]


def test_growth_is_the_relative_change_of_what_the_layer_writes():
    network = model("mamba", num_layers=1)
    seen = subject(network)
    result = ErrorGrowth().measure(seen)
    with torch.no_grad(), mode(network, training=False):
        block = network.blocks[0]
        x, x_adv = (block.norm(network.embed(x)) for x in (seen.x, seen.x_adv))
        y, y_adv = block.layer(x), block.layer(x_adv)
    for name, a, b in (("input_shift", x, x_adv), ("growth", y, y_adv)):
        expected = ((b - a).norm(dim=-1) / a.norm(dim=-1)).mean(0)
        found = torch.tensor(result.quantity(name).values)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    amplified = (y_adv - y).flatten(1).norm(dim=1) / (x_adv - x).flatten(1).norm(dim=1)
    assert result.quantity("amplification").values[0] == pytest.approx(
        amplified.mean().item(), rel=1e-3
    )


def test_the_gain_of_a_linear_layer_bounds_its_amplification():
    network = model("s4d", ads=None)
    result = ErrorGrowth(jacobian_steps=200, tolerance=1e-8).measure(subject(network))
    gains, seen = (result.quantity(name).values for name in ("jacobian_gain", "amplification"))
    assert all(a <= g for a, g in zip(seen, gains, strict=True))


def test_without_a_perturbation_nothing_changes():
    seen = subject(steered(), eps=0.0)
    assert torch.equal(seen.x, seen.x_adv)
    result = ErrorGrowth().measure(seen)
    for name in ("growth", "input_shift", "radius", "measured", "reached"):
        assert set(result.quantity(name).values) == {0.0}
    assert all(0 <= value < 1e-13 for value in result.quantity("certified").values)
    for name in ("frozen", "shift", "cross", "frozen_by_position", "amplification"):
        assert set(result.quantity(name).values) == {None}
    assert not violations(result)
    assert any("moved no example" in remark for remark in result.remarks)


@pytest.mark.parametrize("structure", ["mamba", "s4", "mega"])
def test_one_token_is_enough(structure):
    result = ErrorGrowth().measure(subject(model(structure, length=1), length=1))
    assert not violations(result)
    assert len(result.quantity("growth").values) == 2


def test_attention_alone_has_no_recurrence():
    with pytest.raises(Inapplicable, match="found Attention"):
        ErrorGrowth().measure(subject(model_of(AttentionConfig())))
    both_ways = BidirectionalConfig(layer=MambaConfig(d_state=2))
    with pytest.raises(Inapplicable, match="found Bidirectional"):
        ErrorGrowth().measure(subject(model_of(both_ways)))


def test_a_mixed_model_has_none_where_there_is_no_recurrence():
    network = model("s4d")
    attention = AttentionConfig().build(d_model=6, length=12, noise=Noise(3))
    network.blocks[0] = wrapped(attention)
    result = ErrorGrowth().measure(subject(network))
    for name in ("frozen", "certified", "radius"):
        first, second = result.quantity(name).values
        assert first is None and second is not None
    assert None not in result.quantity("growth").values + result.quantity("jacobian_gain").values
    assert any("Attention has no state" in remark for remark in result.remarks)


def test_both_directions_are_one_exact_bound():
    result = ErrorGrowth().measure(
        subject(model_of(BidirectionalConfig(layer=S4DConfig(d_state=4))))
    )
    (certified,), (reached,) = (result.quantity(n).values for n in ("certified", "reached"))
    assert certified == pytest.approx(reached, rel=1e-9)


def test_a_layer_that_varies_in_an_unknown_way_is_split_but_not_bounded():
    result = ErrorGrowth().measure(subject(model_of(Selfish())))
    assert result.quantity("certified").values == (None,)
    assert result.quantity("shift").values[0] > 0
    assert any("nothing is certified" in remark for remark in result.remarks)


@pytest.mark.parametrize("structure", ["mamba", "s5"])
def test_the_model_is_left_as_it_was_and_the_numbers_repeat(structure):
    network = model(structure, num_layers=1)
    network(torch.zeros(1, 12, 2)).sum().backward()
    network.train()
    seen = subject(network, examples=2)
    with left_alone(network):
        first = ErrorGrowth().measure(seen)
    assert ErrorGrowth().measure(seen) == first
    assert ErrorGrowth(examples=1).measure(seen).settings["looked_at"] == 1
