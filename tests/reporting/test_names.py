"""Display names, and text that is fit to print."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.reporting import names


@pytest.mark.parametrize(
    "layer, text",
    [
        ({"name": "s4"}, "S4"),
        ({"name": "mega", "scaling": None}, "Mega"),
        ({"name": "s4", "scaling": {"form": "scale", "activation": "relu"}}, "S4 + AdS-ReLU"),
        (
            {"name": "dss", "scaling": {"form": "scale_shift", "activation": "tanh"}},
            "DSS + AdSS-Tanh",
        ),
        ({"name": "gla", "scaling": {"form": "odd", "activation": "gelu"}}, "gla + odd-gelu"),
    ],
)
def test_structures(layer, text):
    assert names.structure(layer) == text


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"name": "mnist"}, "MNIST"),
        ({"name": "mnist", "pool": 1}, "MNIST"),
        ({"name": "mnist", "pool": 2}, "MNIST (pooled 2x2)"),
        ({"name": "arrays", "path": "some/where/tones.npz"}, "arrays (tones.npz)"),
        ({"name": "svhn", "path": None}, "svhn"),
    ],
)
def test_data_sets(settings, text):
    assert names.dataset(settings) == text


@pytest.mark.parametrize(
    "label, text",
    [
        ("pgd-10", "PGD-10"),
        ("pgd_released-10", "Released PGD-10"),
        ("apgd-ce", "APGD-CE"),
        ("square", "Square"),
        ("deepfool", "deepfool"),
        ("autoattack_standard", "AutoAttack"),
        ("autoattack_plus", "AutoAttack+"),
        ("autoattack_rand", "AutoAttack-rand"),
        ("autoattack_adapted", "AutoAttack (adapted)"),
        ("quick", "quick: APGD-CE + APGD-T, an upper bound"),
    ],
)
def test_attacks(label, text):
    assert names.attack(label) == text


@pytest.mark.parametrize(
    "threat, text",
    [
        ({"norm": "linf", "eps": 8 / 255, "bounds": [0, 1]}, "ℓ∞, ε = 8/255, inputs in [0, 1]"),
        ({"norm": "l2", "eps": 0.5}, "ℓ2, ε = 0.5"),
        ({"norm": "linf", "eps": 0.2}, "ℓ∞, ε = 0.2"),  # 51/255 as well
        ({"norm": "odd", "eps": "?", "tokens": 3}, "odd, ε = ?, tokens = 3"),
        ({}, "not recorded"),
    ],
)
def test_threats(threat, text):
    assert names.threat(threat) == text


@pytest.mark.parametrize(
    "label", ["autoattack", "autoattack-standard", "autoattack_standard-2", "my-autoattack", "aa"]
)
def test_nothing_else_is_called_autoattack(label):
    assert "AutoAttack" not in names.attack(label)


WINDOW = {"length": 16, "where": "prefix", "stride": 1}


@pytest.mark.parametrize(
    "restriction, text",
    [
        ({"window": WINDOW}, ", first 16 positions"),
        ({"window": WINDOW | {"where": "suffix"}}, ", last 16 positions"),
        ({"window": WINDOW | {"length": 1}}, ", first 1 position"),
        ({"window": WINDOW | {"where": "anywhere"}}, ", any 16 consecutive positions"),
        (
            {"window": WINDOW | {"where": "anywhere", "stride": 4}},
            ", any 16 consecutive positions, starting at every 4th",
        ),
        ({"window": WINDOW | {"where": "middle"}}, ", 16 positions (middle)"),
        ({"channels": [2]}, ", channel 2 only"),
        ({"channels": [0, 2]}, ", channels 0, 2 only"),
        ({"channel_scales": [1.0, 0.5]}, ", ε of the channels times 1, 0.5"),
        ({"band": {"low": 0.5, "high": 1.0}}, ", frequencies 0.5 to 1 (1: half the sampling rate)"),
        ({"window": {"odd": 1}}, ", window = {'odd': 1}"),
        ({"window": WINDOW, "channels": [1]}, ", first 16 positions, channel 1 only"),
        ({"window": None, "channels": None, "channel_scales": None, "band": None}, ""),
    ],
)
def test_restrictions(restriction, text):
    assert names.threat({"norm": "linf", "eps": 0.1} | restriction) == f"ℓ∞, ε = 0.1{text}"


def test_known_names_come_first_in_their_order():
    labels = ["gla", "Mamba", "S4 + AdS-ReLU", "aaa", "S4", "DSS"]
    labels.sort(key=lambda label: names.rank(names.STRUCTURES, label))
    assert labels == ["S4", "S4 + AdS-ReLU", "DSS", "Mamba", "aaa", "gla"]


def test_hidden_and_turning_characters_are_shown_as_such():
    assert names.printable("a\x00b\ud800c\u202ed\ne") == "a\ufffdb\ufffdc\ufffdd e"


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=8))
def test_printable_text_can_be_written(value):
    json.dumps(names.printable(value), ensure_ascii=False).encode()
    assert names.printable(names.printable(value)) == names.printable(value)
