"""Feature shift against numpy on captured features, and parts whose effect is known."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.config import lookup
from robustssm.core.errors import Inapplicable
from robustssm.core.observation import Part
from robustssm.core.rng import Noise, global_stream
from robustssm.diagnostics.base import Subject
from robustssm.diagnostics.capture import capture
from robustssm.diagnostics.feature_shift import COMPONENTS, FeatureShift, change
from robustssm.layers.adaptive_scaling import AdaptiveScalingConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.mega import MegaConfig
from robustssm.layers.s4 import S4Config
from robustssm.models.block import BlockConfig
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.records import join
from robustssm.testing.probes import check_probe
from tests.diagnostics.moved import Map, MapConfig, Moved

LENGTH, WIDTH, BATCH = 7, 4, 5
BARE = BlockConfig(norm="none", residual=False, activation="none", mixing="none")
PAPER = BlockConfig(norm="post", activation="gelu", mixing_activation="gelu")
SCALED = S4Config(d_state=4, scaling=AdaptiveScalingConfig())
METRICS = ("mse", "kl", "cosine", "relative", "cka")


def classifier(layer=SCALED, *, block=PAPER, num_layers=2, length=LENGTH):
    made = SequenceClassifierConfig(
        layer=layer, d_model=WIDTH, num_layers=num_layers, block=block, input_norm=True
    )
    return made.build(shape=(length, 2), num_classes=3, noise=Noise(0)).double()


def subject(model, *, size=0.05, batch=BATCH, length=LENGTH, seed=0):
    noise = Noise(10 + seed)
    return Subject(
        model,
        0.3 + 0.4 * noise.fork("x").uniform(batch, length, 2, dtype=torch.float64),
        noise.fork("y").integers(batch, high=3),
        threat=Threat(eps=0.3 if size else 0.0),
        attack=Moved(size=size),
        noise=Noise(4, torch.arange(batch)),
    )


def there(quantity):
    return [value for value in quantity.values if value is not None]


def by_hand(f, g):
    """mse, kl, cosine, relative and cka of float64 features, in numpy."""
    f, g = f.numpy(), g.numpy()
    rows = []
    for a, b in zip(f, g, strict=True):
        size, gone = np.linalg.norm(a), np.linalg.norm(b - a)
        kl = rel_entr(softmax(a, 0), softmax(b, 0)).sum()
        cosine = (a * b).sum() / size / np.linalg.norm(b)
        rows.append([gone**2 / len(a) / size, kl / size, 1 - cosine, gone / size])
    x, y = (each.reshape(-1, each.shape[-1]) - each.mean((0, 1)) for each in (f, g))
    cka = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    return [*np.mean(rows, 0), 1 - cka]


@pytest.mark.parametrize(
    "layer, block",
    [(SCALED, PAPER), (MegaConfig(d_state=2), BARE), (MambaConfig(d_state=2), BlockConfig())],
    ids=["s4", "mega", "mamba"],
)
def test_every_quantity_is_what_numpy_makes_of_the_captured_features(layer, block):
    model = classifier(layer, block=block)
    given = subject(model)
    result = FeatureShift(batch_size=2).measure(given)
    pairs = list(zip(capture(model, given.x), capture(model, given.x_adv), strict=True))
    changes = {}
    for layer_index in (0, 1):
        for part in COMPONENTS:
            place = {"layer": str(layer_index), "component": part}
            at = [(f, g) for f, g in pairs if f.place[:2] == (layer_index, part)]
            if not at:
                for metric in METRICS:
                    for name in ("before", "after", "change"):
                        assert result.quantity(f"{metric}_{name}").at(**place) is None
                continue
            before = np.mean([by_hand(f.before, g.before) for f, g in at], 0)
            after = np.mean([by_hand(f.after, g.after) for f, g in at], 0)
            for metric, b, a in zip(METRICS, before, after, strict=True):
                found = [result.quantity(f"{metric}_{n}").at(**place) for n in ("before", "after")]
                assert found == pytest.approx([b, a], rel=1e-6)
                assert result.quantity(f"{metric}_change").at(**place) == pytest.approx(
                    (found[1] - found[0]) / found[0], rel=1e-12
                )
                changes.setdefault((metric, part), []).append((found[1] - found[0]) / found[0])
    assert changes
    for (metric, part), values in changes.items():
        for name, expected in (("mean", np.mean(values)), ("median", np.median(values))):
            found = result.quantity(f"{metric}_change_{name}").at(component=part)
            assert found == pytest.approx(expected, rel=1e-12)


def test_the_map_is_of_what_each_block_hands_on():
    model = classifier()
    given = subject(model)
    expected = []
    with torch.no_grad():
        f, g = (model.input_norm(model.embed(x)) for x in (given.x, given.x_adv))
        for block in model.blocks:
            f, g = block(f), block(g)
            expected.append(((g - f).norm(dim=2) / f.norm(dim=2)).mean(0))
    found = FeatureShift(batch_size=3).measure(given).quantity("shift_map")
    assert [axis.name for axis in found.axes] == ["layer", "position"]
    assert found.axes[1].labels == tuple(str(t) for t in range(LENGTH))
    torch.testing.assert_close(
        torch.tensor(found.values, dtype=torch.float64), torch.stack(expected).flatten()
    )


def changes_of(kind_of_map, **options):
    model = classifier(MapConfig(kind_of_map=kind_of_map), block=BARE, **options)
    result = FeatureShift().measure(subject(model, size=1e-3))
    return {m: result.quantity(f"{m}_change").where(component="layer") for m in METRICS}


def test_a_layer_that_only_enlarges_raises_the_papers_metrics_and_no_other():
    found = changes_of("triple")
    assert found["mse"] == pytest.approx((2, 2), rel=1e-9)  # 3^2 / 3 - 1
    for metric in ("cosine", "relative", "cka"):
        assert found[metric] == pytest.approx((0, 0), abs=1e-6)
    assert all(value > 0.5 for value in found["kl"])


def test_a_rotation_changes_nothing_but_the_divergence():
    found = changes_of("turn")
    for metric in ("mse", "cosine", "relative", "cka"):
        assert found[metric] == pytest.approx((0, 0), abs=1e-5)
    assert all(abs(value) > 1e-3 for value in found["kl"])


def test_a_layer_that_forgets_takes_the_shift_away():
    found = changes_of("zero", num_layers=2)
    for metric in METRICS:
        assert found[metric] == (-1, None)  # all of it; and then there is nothing left to change


def test_no_perturbation():
    given = subject(classifier(), size=0.0)
    result = FeatureShift().measure(given)
    for quantity in result.quantities:
        values = {value for value in quantity.values if value is not None}
        assert values == (set() if "change" in quantity.name else {0.0}), quantity.name
    assert any("moved no example" in remark for remark in result.remarks)


def test_a_sequence_of_one_position():
    result = FeatureShift().measure(subject(classifier(length=1), length=1))
    assert set(result.quantity("kl_before").where(component="ssm")) == {0.0}
    assert set(result.quantity("kl_change").values) == {None}
    assert all(value > 0 for value in result.quantity("mse_before").where(component="ssm"))
    assert len(result.quantity("shift_map").axes[1].labels) == 1


def test_features_that_are_no_numbers_are_reported_as_such():
    model = classifier()
    with torch.no_grad():
        model.blocks[0].mixing.bias[0] = math.nan
    result = FeatureShift().measure(subject(model))
    for metric in METRICS:
        before, after = (
            result.quantity(f"{metric}_{name}").where(layer="0", component="linear")
            for name in ("before", "after")
        )
        assert math.isfinite(before[0]) and math.isnan(after[0])
        for name in ("change_mean", "change_median"):
            summary = result.quantity(f"{metric}_{name}")
            assert math.isnan(summary.at(component="linear"))
    assert type(result).from_dict(result.to_dict()).quantity("shift_map").values


def test_the_size_of_batches_and_the_precision_of_the_model_hardly_matter():
    model = classifier()
    whole, single = (FeatureShift(batch_size=size).measure(subject(model)) for size in (64, 1))
    for one, other in zip(whole.quantities, single.quantities, strict=True):
        assert there(one) == pytest.approx(there(other), rel=1e-9, abs=1e-12)
    given = subject(model)
    x, x_adv = given.x.float(), given.x_adv.float()
    rough = Subject(
        model.float(), x, given.y, threat=given.threat, attack=given.attack, noise=given.noise
    )
    rough._x_adv = x_adv
    found = FeatureShift().measure(rough)
    for name in ("mse_after", "kl_after", "cosine_after", "relative_after", "cka_after"):
        assert there(found.quantity(name)) == pytest.approx(there(whole.quantity(name)), rel=2e-3)


def test_it_holds_the_contract_and_compares_splits():
    probe = lookup("probe", "feature_shift")
    assert probe is FeatureShift and FeatureShift.splits == ("train", "test")
    check_probe(FeatureShift())
    model = classifier()
    joined = join(
        {split: FeatureShift().measure(subject(model, seed=n)) for n, split in enumerate("ab")},
        "split",
    )
    names = [axis.name for axis in joined.quantity("mse_change").axes]
    assert names == ["split", "layer", "component"]
    assert joined.quantity("mse_change").unit == "1"
    assert "qi2024exploring" in joined.quantity("kl_change").claim


def test_every_part_that_can_be_observed_has_its_place():
    assert sorted(COMPONENTS) == sorted(get_args(Part))


def test_parts_that_occur_several_times_are_named():
    result = FeatureShift().measure(subject(classifier(MegaConfig(d_state=2), block=BARE)))
    (remark,) = [each for each in result.remarks if "averaged" in each]
    assert "gate (2 times), linear (3 times), norm (2 times)" in remark


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (2.0, 3.0, 0.5),
        (2.0, 0.0, -1.0),
        (0.0, 0.0, None),
        (0.0, 1.0, math.inf),
        (None, 1.0, None),
        (1.0, None, None),
        (1.0, math.inf, math.inf),
    ],
)
def test_change(before, after, expected):
    assert change(before, after) == expected


@pytest.mark.parametrize("before, after", [(math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf)])
def test_a_change_without_a_value(before, after):
    assert math.isnan(change(before, after))


def test_what_cannot_be_measured_is_refused():
    with global_stream(Noise(0)):
        plain = nn.Sequential(nn.Flatten(), nn.Linear(2 * LENGTH, 3)).double()
    with pytest.raises(Inapplicable, match="Flatten, Linear"):
        FeatureShift().measure(subject(plain))
    silent = nn.Sequential(Map(torch.eye(2, dtype=torch.float64)), nn.Flatten())
    with pytest.raises(Inapplicable, match="Map reported no parts"):
        FeatureShift().measure(subject(silent))
    with pytest.raises(ValueError, match="at least one example"):
        FeatureShift().measure(subject(classifier(), batch=0))


def test_adversarial_examples_of_an_attack_in_single_precision():
    model = classifier().float()
    noise = Noise(1)
    given = Subject(
        model,
        noise.uniform(4, LENGTH, 2),
        noise.integers(4, high=3),
        threat=Threat(eps=0.1),
        attack=PGD(steps=2),
        noise=Noise(4, torch.arange(4)),
    )
    result = FeatureShift().measure(given)
    assert all(value > 0 for value in result.quantity("relative_after").where(component="ssm"))
    assert result.settings["probe"] == FeatureShift().to_dict()
    assert result.settings["examples"] == 4
