"""Recipes: named experiments, as plain values.

A name is TIER.STRUCTURE[_ads_ACTIVATION]_METHOD, as in `digits.s4_trades` or
`cifar10.dss_ads_relu_trades`, or TIER.CONTROL_METHOD, as in `digits.s4_wide_pgd`; a function of
your own is named `module:function`.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from robustssm.core.errors import unknown, violation
from robustssm.core.imports import named
from robustssm.recipes.controls import CONTROLS

if TYPE_CHECKING:
    from robustssm.experiment import Experiment

Structure = Literal["s4", "s4d", "dss", "s5", "mega", "mamba"]
Ads = Literal["relu", "sigmoid", "tanh"]
Method = Literal["standard", "pgd", "trades", "free", "yopo", "fast", "mart", "awp", "jacobian"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
ADS: tuple[Ads | None, ...] = (None, *get_args(Ads))
METHODS: tuple[Method, ...] = get_args(Method)
TIERS: Mapping[str, tuple[str, str]] = {
    "digits": (
        "digits",
        "8x8 digits embedded in the installation, L = 64; seconds to minutes on a CPU",
    ),
    "digits_paper": ("digits", "the same data and epochs with the paper's model: GELU, true PGD"),
    "digits_released": ("digits", "digits_paper with every bug of the released code"),
    "mnist14": ("mnist", "MNIST pooled to 14x14, L = 196, d_model 64; real data for a CPU"),
    "mnist": ("mnist", "MNIST, L = 784, the paper's text: GELU, true PGD"),
    "mnist_released": ("mnist", "MNIST as the released code ran: no activation, its PGD"),
    "cifar10": ("cifar10", "CIFAR-10, L = 1024, the paper's text: GELU, true raster, true PGD"),
    "cifar10_released": ("cifar10", "CIFAR-10 as the released code ran: scrambled tokens, its PGD"),
    "tiny_imagenet": ("tiny_imagenet", "Tiny-ImageNet, 50 classes, 4x4 patches, L = 256: GELU"),
    "tiny_imagenet_released": ("tiny_imagenet", "the same with the released code's model and PGD"),
    "copying": ("sequences", "marked values early in noise, L = 128; made by rule, for CPUs"),
    "adding": ("sequences", "in which bin two marked numbers add up, L = 128; made by rule"),
    "tones": ("sequences", "the pitch of a struck tone under noise, L = 256; made by rule"),
}
"""Tier to the module that holds it and one line about it."""


@dataclass(frozen=True)
class Cell:
    """One cell of the tables: a structure, its adaptive scaling, and a training method."""

    tier: str
    structure: Structure
    """Of a control: the structure that it is made from."""
    ads: Ads | None
    method: Method
    control: str = ""
    """One of `CONTROLS`; empty for a cell of the tables."""

    @property
    def name(self) -> str:
        """The recipe's name."""
        scaled = f"_ads_{self.ads}" if self.ads else ""
        model = self.control or f"{self.structure}{scaled}"
        return f"{self.tier}.{model}_{self.method}"


def cells(tier: str | None = None) -> tuple[Cell, ...]:
    """Every cell of one tier, or of all, in the order of the tables.

    Raises:
        ValueError: If there is no such tier.
    """
    if tier is not None and tier not in TIERS:
        raise ValueError(unknown("tier", tier, TIERS))
    return tuple(
        Cell(t, structure, ads, method)
        for t in (TIERS if tier is None else [tier])
        for structure in STRUCTURES
        for ads in ADS
        for method in METHODS
    )


def controls(tier: str | None = None) -> tuple[Cell, ...]:
    """Every control of one tier, or of all, under every training method.

    Raises:
        ValueError: If there is no such tier.
    """
    if tier is not None and tier not in TIERS:
        raise ValueError(unknown("tier", tier, TIERS))
    return tuple(
        Cell(t, "dss" if name.startswith("dss") else "s4", None, method, control=name)
        for t in (TIERS if tier is None else [tier])
        for name, control in CONTROLS.items()
        if t in control.tiers
        for method in METHODS
    )


def names(tier: str | None = None) -> tuple[str, ...]:
    """Names of every recipe of one tier, or of all, controls last."""
    return tuple(cell.name for cell in (*cells(tier), *controls(tier)))


def recipe(name: str) -> "Experiment":
    """The experiment called `name`.

    Args:
        name: A name from `names()`, or "module:function" for a function without arguments that
            returns an
            Experiment.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    if ":" in name:
        return _own(name)()
    known = _known()
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    cell = known[name]
    module = importlib.import_module(f"{__name__}.{TIERS[cell.tier][0]}")
    return module.experiment(cell)


@functools.cache
def _known() -> Mapping[str, Cell]:
    return {cell.name: cell for cell in (*cells(), *controls())}


def _own(name: str) -> Callable[[], "Experiment"]:
    function = named(name, what="A recipe")
    if not callable(function):
        raise ValueError(
            violation(
                f"'{name}'",
                "be a function that returns an Experiment",
                type(function).__name__,
                "Wrap the value in a function without arguments.",
            )
        )
    return cast("Callable[[], Experiment]", function)
