"""Spectra of layers whose eigenvalues, memory and gain are known in closed form."""

import math

import pytest
import torch

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.diagnostics.spectrum import Spectrum
from robustssm.layers.attention import AttentionConfig
from robustssm.layers.bidirectional import BidirectionalConfig
from robustssm.layers.s4d import S4DConfig
from robustssm.ops.recurrence import impulse_response
from robustssm.records import join
from tests.diagnostics.looked_at import (
    STRUCTURES,
    Decay,
    Selfish,
    left_alone,
    model,
    model_of,
    subject,
    wrapped,
)


def measured(network, *, length=12, **settings):
    return Spectrum(**settings).measure(subject(network, length=length))


def one(result, name):
    (value,) = result.quantity(name).values
    return value


@pytest.mark.parametrize("a", [0.0, 0.3, 0.8, -0.8])
def test_of_a_known_decay_in_closed_form(a):
    length = 80
    result = measured(model_of(Decay(a), length=length), length=length)
    assert one(result, "spectral_radius") == pytest.approx(abs(a), rel=1e-6)
    assert one(result, "unstable") == 0
    # The energy of a^t that is left after k steps is a^(2 k) of all of it.
    steps = math.ceil(math.log(0.01) / (2 * math.log(abs(a)))) if a else 1
    assert result.quantity("memory_horizon").values == (steps, steps)
    expected = -1 / math.log(abs(a)) if a else 0.0
    assert one(result, "time_constant") == pytest.approx(expected, rel=1e-6)
    for name in ("effective_rank", "effective_rank_unlimited"):
        assert one(result, name) == pytest.approx(1.0 if a else 0.0, abs=1e-9)
    gains = result.quantity("gain_max").values
    assert gains == pytest.approx(result.quantity("gain_mean").values)  # all channels are alike
    for gain, label in zip(gains, result.quantity("gain_max").axes[1].labels, strict=True):
        z = complex(math.cos(w := float(label) * math.pi), -math.sin(w))
        assert gain == pytest.approx(1 / abs(1 - a * z), rel=1e-3)
    assert set(result.quantity("eigenvalue_imag").values) == {0.0}
    assert result.quantity("eigenvalue_real").values == pytest.approx([a] * 4, rel=1e-6)


def test_growing_modes_are_counted_and_what_needs_unlimited_time_left_out():
    result = measured(model_of(Decay(1.1)))
    assert one(result, "unstable") == 4
    assert one(result, "time_constant") is None
    assert one(result, "effective_rank_unlimited") is None
    assert one(result, "effective_rank") == pytest.approx(1.0)
    assert result.quantity("gain_max").values[0] == pytest.approx((1.1**12 - 1) / 0.1, rel=1e-5)
    assert "4 of 4 eigenvalues" in result.remarks[0]
    assert not measured(model_of(Decay(0.9))).remarks


@pytest.mark.parametrize("structure", ["s4d", "dss", "s5"])
def test_new_layers_have_the_radius_that_their_step_sizes_give(structure):
    """Re of the continuous eigenvalues is -1/2 in HiPPO's normal part."""
    network = model(structure)
    result = measured(network)
    radii = [math.exp(-block.layer.log_dt.exp().min().item() / 2) for block in network.blocks]
    assert result.quantity("spectral_radius").values == pytest.approx(radii, rel=1e-6)
    assert result.quantity("unstable").values == (0, 0)
    real, imag = (torch.tensor(result.quantity(f"eigenvalue_{p}").values) for p in ("real", "imag"))
    assert torch.complex(real, imag).abs().max().item() == pytest.approx(max(radii), rel=1e-6)


def test_the_eigenvalues_of_s4_are_those_of_its_dense_matrix():
    network = model("s4", num_layers=1)
    A = network.blocks[0].layer.double().system(dtype=torch.float64).A[0, 0]
    expected = torch.linalg.eigvals(A).flatten()
    network.float()
    result = measured(network)
    found = torch.complex(
        *(
            torch.tensor(result.quantity(f"eigenvalue_{part}").values, dtype=torch.float64)
            for part in ("real", "imag")
        )
    )
    distances = (found[:, None] - expected).abs()
    assert len(found) == len(expected)
    assert distances.min(0).values.max() < 1e-6 and distances.min(1).values.max() < 1e-6


def test_mamba_chooses_the_radius_that_its_step_sizes_give():
    """A new Mamba has A = -1, -2, ...: the slowest mode decays by exp(-delta)."""
    result = measured(model("mamba"))
    steps, radii = (
        torch.tensor(result.quantity(name).values).reshape(2, -1)
        for name in ("step_size", "chosen_radius")
    )
    mirrored = torch.exp(-steps.flip(1))
    apart = torch.tensor([0, 1, 2, 4, 5, 6])  # of an even number, the lower or the upper median
    torch.testing.assert_close(radii[:, apart], mirrored[:, apart], rtol=1e-5, atol=0)
    assert (steps.diff(dim=1) >= 0).all()
    assert result.quantity("spectral_radius").values == pytest.approx(radii[:, -1].tolist())
    assert set(result.quantity("gain_max").values) == {None}
    assert set(result.quantity("effective_rank_unlimited").values) == {None}
    assert None not in result.quantity("effective_rank").values
    assert all(1 <= h <= 12 for h in result.quantity("memory_horizon").values)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_values_are_in_their_ranges_and_compare_before_and_after(structure):
    before, after = (measured(model(structure, noise=n)) for n in (0, 1))
    both = join({"initial": before, "best": after}, "checkpoint")
    for name in ("effective_rank", "memory_horizon", "states"):
        assert None not in both.quantity(name).values
    ranks, states = both.quantity("effective_rank"), both.quantity("states")
    assert all(0 < r <= s * (1 + 1e-9) for r, s in zip(ranks.values, states.values, strict=True))
    assert before.quantity("spectral_radius").values != after.quantity("spectral_radius").values
    for quantity in before.quantities:
        assert quantity.axes[0].labels == ("0", "1")


def test_the_gain_of_both_directions_is_that_of_their_sum():
    network = model_of(BidirectionalConfig(layer=S4DConfig(d_state=4)))
    result = measured(network, frequencies=5)
    layer = network.blocks[0].layer.double()
    with torch.no_grad():
        ahead, behind = layer.recurrence(torch.zeros(1, 12, 4).double()).directions
        w = torch.linspace(0, math.pi, 5, dtype=torch.float64)
        turns = torch.polar(torch.ones(5, 12).double(), -w[:, None] * torch.arange(12))
        G = [
            turns @ impulse_response(way, 12)[:, 0, 0].T.to(turns.dtype) for way in (ahead, behind)
        ]
    gain = (G[0] + G[1].conj()).abs()
    assert result.quantity("gain_max").values == pytest.approx(gain.amax(1).tolist(), rel=1e-6)
    rms = gain.square().mean(1).sqrt().tolist()
    assert result.quantity("gain_mean").values == pytest.approx(rms, rel=1e-6)


def test_long_lists_of_eigenvalues_are_thinned_evenly():
    whole = measured(model("mega"), eigenvalues=1000).quantity("eigenvalue_real")
    some = measured(model("mega"), eigenvalues=7).quantity("eigenvalue_real")
    assert len(whole.values) == 2 * 2 * 6 * 4 and len(some.values) == 2 * 7
    assert some.values[0] == whole.values[0] and some.values[-1] == whole.values[-1]
    assert set(some.values) <= set(whole.values)


def test_another_length_is_refused_where_the_system_depends_on_it():
    with pytest.raises(Inapplicable, match=r"DSS .* taps that depend on it"):
        Spectrum(length=20).measure(subject(model("dss")))
    with pytest.raises(Inapplicable, match=r"Mamba .* follows its input"):
        Spectrum(length=20).measure(subject(model("mamba")))
    Spectrum(length=12).measure(subject(model("dss")))
    result = Spectrum(length=40).measure(subject(model_of(Decay(0.8))))
    assert result.quantity("memory_horizon").values == (11.0, 11.0)
    assert result.quantity("gain_max").values[0] == pytest.approx(5, rel=1e-3)


def test_one_token_is_enough():
    for structure in ("s4", "mamba", "mega"):
        result = measured(model(structure, length=1), length=1)
        assert result.quantity("memory_horizon").values == (1.0,) * 4
        assert result.quantity("effective_rank").values == (0.0, 0.0)


def test_attention_alone_is_refused_and_beside_others_left_out():
    with pytest.raises(Inapplicable, match="found Attention"):
        measured(model_of(AttentionConfig()))
    network = model("s4d")
    network.blocks[1] = wrapped(AttentionConfig().build(d_model=6, length=12, noise=Noise(3)))
    result = measured(network)
    for quantity in result.quantities:
        half = len(quantity.values) // 2
        assert set(quantity.values[half:]) == {None}
    assert result.quantity("spectral_radius").values[0] is not None
    assert any("Attention has no state" in remark for remark in result.remarks)


def test_other_layers_that_vary_have_medians_and_no_gain():
    result = measured(model_of(Selfish()))
    assert set(result.quantity("gain_max").values) == {None}
    assert set(result.quantity("step_size").values) == {None}
    assert None not in result.quantity("chosen_radius").values
    assert all(0 < value < 1 for value in result.quantity("eigenvalue_real").values)


@pytest.mark.parametrize("structure", ["mamba", "s5"])
def test_the_model_is_left_as_it_was_and_the_numbers_repeat(structure):
    network = model(structure, num_layers=1)
    network(torch.zeros(1, 12, 2)).sum().backward()
    seen = subject(network, examples=2)
    with left_alone(network):
        first = Spectrum().measure(seen)
    assert Spectrum().measure(seen) == first
