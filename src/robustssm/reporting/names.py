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
STRUCTURES = {
    "s4": "S4",
    "s4d": "S4D",
    "dss": "DSS",
    "s5": "S5",
    "mega": "Mega",
    "mamba": "Mamba",
    "lru": "LRU",
    "mamba2": "Mamba-2",
    "ema": "EMA",
    "attention": "Attention",
    "transformer": "Transformer",
    "cnn": "CNN",
}
METHODS = {
    "standard": "Standard",
    "pgd_training": "PGD-AT",
    "trades": "TRADES",
    "free": "FreeAT",
    "yopo": "YOPO",
    "fast": "Fast AT",
    "mart": "MART",
    "adversarial_weight_perturbation": "AWP",
    "jacobian_penalty": "Jacobian penalty",
}
ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "Tanh"}
SCALINGS = {"scale": "AdS", "scale_shift": "AdSS", "shift": "shift"}
RULES = {
    "validation_adversarial_accuracy": "adversarial accuracy on validation data",
    "validation_accuracy": "clean accuracy on validation data",
    "test_adversarial_accuracy": "adversarial accuracy on the test set itself",
    "last": "none, the last epoch",
}
NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}

SUITES = {
    "autoattack_standard": "AutoAttack",
    "autoattack_plus": "AutoAttack+",
    "autoattack_rand": "AutoAttack-rand",
    "autoattack_adapted": "AutoAttack (adapted)",
    "autoattack_plus_adapted": "AutoAttack+ (adapted)",
    "autoattack_rand_adapted": "AutoAttack-rand (adapted)",
    "quick": "quick: APGD-CE + APGD-T, an upper bound",
}
"""Label of a suite of attacks to its name. Nothing else may be called AutoAttack."""

_ATTACK_WORDS = {
    "pgd": "PGD",
    "pgd_released": "Released PGD",
    "fgsm": "FGSM",
    "apgd": "APGD",
    "apgd_targeted": "APGD-T",
    "fab": "FAB",
    "fab_targeted": "FAB-T",
    "square": "Square",
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


def model(settings: Mapping[str, Any]) -> str:
    """The structure, with what tells controls apart: "S4 (affine)", "S4 + GLU", "S4 (width 42)".

    Args:
        settings: Settings of a model, with "name" and possibly "layer", "block" and "d_model".
    """
    layer, block = settings.get("layer"), settings.get("block")
    if not isinstance(layer, Mapping):
        return structure(settings)
    name = structure(layer)
    if isinstance(block, Mapping) and layer["name"] in _MIXED:
        name += _around(block, scaled=isinstance(layer.get("scaling"), Mapping))
    width = settings.get("d_model")
    odd = isinstance(width, int) and width.bit_count() > 1  # the usual widths are powers of two
    return f"{name} (width {width})" if odd else name


def structure(layer: Mapping[str, Any]) -> str:
    """The layer with its adaptive scaling, "S4 + AdS-ReLU".

    Args:
        layer: Settings of a layer, with "name" and possibly "scaling".
    """
    name = STRUCTURES.get(layer["name"], str(layer["name"]))
    inner, scaling = layer.get("layer"), layer.get("scaling")
    if layer["name"] == "bidirectional" and isinstance(inner, Mapping):
        return f"Bidirectional {structure(inner)}"
    if not isinstance(scaling, Mapping):
        return name
    form, activation = str(scaling.get("form", "scale")), str(scaling.get("activation", ""))
    parts = (SCALINGS.get(form, form), ACTIVATIONS.get(activation, activation))
    kinds = ["frozen"] * (scaling.get("trainable") is False)
    kinds += ["identity start"] * (scaling.get("initial") == "identity")
    suffix = f" ({', '.join(kinds)})" if kinds else ""
    return f"{name} + {'-'.join(part for part in parts if part)}{suffix}"


_MIXED = ("s4", "s4d", "dss")
"""Layers after which every preset has an activation and a map across channels."""


def _around(block: Mapping[str, Any], *, scaled: bool) -> str:
    """What a block adds to the name of its layer; nothing in the usual ones."""
    if block.get("mixing") == "glu":
        return " + GLU"
    if block.get("mixing") != "linear" or block.get("norm") == "none":
        return ""
    gelus = [block.get(key) == "gelu" for key in ("activation", "mixing_activation")]
    if not any(gelus) and block.get("activation") == "none":
        return " (no GELU)" if scaled else " (affine)"
    # Presets in pre-norm have one GELU, those in post-norm, the paper's, two.
    return " (one GELU)" if block.get("norm") == "post" and sum(gelus) == 1 else ""


def attack(label: str) -> str:
    """The label of an attack in capitals where they are usual: "pgd-10" becomes "PGD-10"."""
    if label in SUITES:
        return SUITES[label]
    return "-".join(_ATTACK_WORDS.get(word, word) for word in label.split("-"))


def threat(settings: Mapping[str, Any]) -> str:
    """What the attacker may do, "ℓ∞, ε = 8/255, inputs in [0, 1], first 16 positions"."""
    rest = {key: value for key, value in settings.items() if value is not None}
    parts = []
    if "norm" in rest:
        norm = str(rest.pop("norm"))
        parts.append(NORMS.get(norm, norm))
    if "eps" in rest:
        parts.append(f"ε = {radius(rest.pop('eps'))}")
    if isinstance(rest.get("bounds"), list | tuple):
        parts.append(f"inputs in [{', '.join(_plain(b) for b in rest.pop('bounds'))}]")
    parts += [text for key in _RESTRICTIONS if key in rest and (text := _restriction(key, rest))]
    parts += [f"{key} = {_plain(value)}" for key, value in rest.items() if key != "name"]
    return ", ".join(parts) or "not recorded"


def radius(eps: Any) -> str:
    """A radius as papers say it: "8/255" where it is one, else the number."""
    if not isinstance(eps, int | float):
        return _plain(eps)
    levels = eps * 255
    if len(f"{eps:.12g}") > 5 and levels >= 0.5 and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255"
    return _plain(eps)


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


_RESTRICTIONS = ("window", "channels", "channel_scales", "band")


def _restriction(key: str, rest: dict[str, Any]) -> str:
    """Takes a restriction out of `rest` and says it; leaves what it cannot read, and says ""."""
    value = rest[key]
    if key == "window" and isinstance(value, Mapping) and set(value) <= _WINDOW:
        text = _window(value)
    elif key == "band" and isinstance(value, Mapping) and set(value) <= _BAND:
        low, high = _plain(value.get("low", 0.0)), _plain(value.get("high", 1.0))
        text = f"frequencies {low} to {high} (1: half the sampling rate)"
    elif key == "channels" and isinstance(value, list | tuple) and value:
        text = f"channel{'s' if len(value) > 1 else ''} {_listed(value)} only"
    elif key == "channel_scales" and isinstance(value, list | tuple):
        text = f"ε of the channels times {_listed(value)}"
    else:
        return ""
    del rest[key]
    return text


_WINDOW, _BAND = {"name", "length", "where", "stride"}, {"name", "low", "high"}


def _window(window: Mapping[str, Any]) -> str:
    where, length = window.get("where", "prefix"), _plain(window.get("length", "?"))
    positions = f"{length} position{'' if length == '1' else 's'}"
    if where in ("prefix", "suffix"):
        return f"{'first' if where == 'prefix' else 'last'} {positions}"
    if where != "anywhere":
        return f"{positions} ({_plain(where)})"
    stride = window.get("stride", 1)
    steps = "" if stride == 1 else f", starting at every {_plain(stride)}th"
    return f"any {length} consecutive positions{steps}"


def _listed(values: list[Any] | tuple[Any, ...]) -> str:
    return ", ".join(_plain(value) for value in values)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
