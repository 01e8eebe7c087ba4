"""How things are called in print. A name that is not known here is shown as it is."""

import unicodedata
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

DATASETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "tiny_imagenet": "Tiny-ImageNet",
}
STRUCTURES = {"s4": "S4", "s4d": "S4D", "dss": "DSS", "s5": "S5", "mega": "Mega", "mamba": "Mamba"}
METHODS = {"standard": "Standard", "pgd_training": "PGD-AT", "trades": "TRADES"}
ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "Tanh"}
SCALINGS = {"scale": "AdS", "scale_shift": "AdSS"}
RULES = {
    "validation_adversarial_accuracy": "adversarial accuracy on validation data",
    "validation_accuracy": "clean accuracy on validation data",
    "test_adversarial_accuracy": "adversarial accuracy on the test set itself",
    "last": "none, the last epoch",
}
NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

_ATTACK_WORDS = {
    "pgd": "PGD",
    "fgsm": "FGSM",
    "apgd": "APGD",
    "fab": "FAB",
    "square": "Square",
    "autoattack": "AutoAttack",
    "ce": "CE",
    "dlr": "DLR",
    "t": "T",
}


def dataset(settings: Mapping[str, Any]) -> str:
    """The data set, with what makes it another one: "MNIST (pooled 2x2)", "arrays (tones.npz)".

    Args:
        settings: Settings of a data set, with "name".
    """
    name = DATASETS.get(settings["name"], str(settings["name"]))
    pool, path = settings.get("pool", 1), settings.get("path")
    if isinstance(pool, int) and pool > 1:
        return f"{name} (pooled {pool}x{pool})"
    return f"{name} ({PurePath(path).name})" if isinstance(path, str) else name


def structure(layer: Mapping[str, Any]) -> str:
    """The layer with its adaptive scaling, "S4 + AdS-ReLU".

    Args:
        layer: Settings of a layer, with "name" and possibly "scaling".
    """
    name = STRUCTURES.get(layer["name"], str(layer["name"]))
    scaling = layer.get("scaling")
    if not isinstance(scaling, Mapping):
        return name
    form, activation = str(scaling.get("form", "scale")), str(scaling.get("activation", ""))
    parts = (SCALINGS.get(form, form), ACTIVATIONS.get(activation, activation))
    return f"{name} + {'-'.join(part for part in parts if part)}"


def attack(label: str) -> str:
    """The label of an attack in capitals where they are usual: "pgd-10" becomes "PGD-10"."""
    return "-".join(_ATTACK_WORDS.get(word, word) for word in label.split("-"))


def threat(settings: Mapping[str, Any]) -> str:
    """What the attacker may do, "ℓ∞, ε = 8/255, inputs in [0, 1]"."""
    rest = dict(settings)
    parts = []
    if "norm" in rest:
        norm = str(rest.pop("norm"))
        parts.append(NORMS.get(norm, norm))
    if "eps" in rest:
        parts.append(f"ε = {_radius(rest.pop('eps'))}")
    if isinstance(rest.get("bounds"), list | tuple):
        parts.append(f"inputs in [{', '.join(_plain(b) for b in rest.pop('bounds'))}]")
    parts += [f"{key} = {_plain(value)}" for key, value in rest.items() if key != "name"]
    return ", ".join(parts) or "not recorded"


def rank(known: Mapping[str, str], label: str) -> tuple[int, str]:
    """Sorts known names in the order of this page and all others, by alphabet, after them."""
    order = list(known.values())
    head = label.split(" ")[0]
    return (order.index(head) if head in order else len(order), label)


def printable(value: Any) -> Any:
    """Replaces characters that no page should carry, in text anywhere inside a JSON value.

    Line breaks and tabs become blanks; other control characters, lone surrogates and marks that
    turn the direction of writing become U+FFFD.
    """
    if isinstance(value, str):
        return "".join(_visible(character) for character in value)
    if isinstance(value, Mapping):
        return {printable(str(key)): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    hidden = unicodedata.category(character) in ("Cc", "Cs")
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return "\N{REPLACEMENT CHARACTER}" if hidden or turns else character


def _radius(eps: Any) -> str:
    if not isinstance(eps, int | float):
        return _plain(eps)
    levels = eps * 255
    if len(f"{eps:.12g}") > 5 and levels >= 0.5 and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return _plain(eps)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
