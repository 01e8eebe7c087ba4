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
    [("pgd-10", "PGD-10"), ("apgd-ce", "APGD-CE"), ("square", "Square"), ("deepfool", "deepfool")],
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
