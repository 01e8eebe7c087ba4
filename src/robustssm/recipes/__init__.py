"""Recipes: named experiments, as plain values.

A name is TIER.STRUCTURE[_ads_ACTIVATION]_METHOD, as in `digits.s4_trades` or
`cifar10.dss_ads_relu_trades`; a function of your own is named `module:function`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from robustssm.core.errors import unknown

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
    "mnist14": ("mnist", "MNIST pooled to 14x14, L = 196, d_model 64; real data for a CPU"),
    "mnist": ("mnist", "MNIST, L = 784, the paper's text: GELU, true PGD"),
    "mnist_released": ("mnist", "MNIST as the released code ran: no activation, its PGD"),
    "cifar10": ("cifar10", "CIFAR-10, L = 1024, the paper's text: GELU, true raster, true PGD"),
    "cifar10_released": ("cifar10", "CIFAR-10 as the released code ran: scrambled tokens, its PGD"),
}
"""Tier to the module that holds it and one line about it."""


@dataclass(frozen=True)
class Cell:
    """One cell of the tables: a structure, its adaptive scaling, and a training method."""

    tier: str
    structure: Structure
    ads: Ads | None
    method: Method

    @property
    def name(self) -> str:
        """The recipe's name."""
        scaled = f"_ads_{self.ads}" if self.ads else ""
        return f"{self.tier}.{self.structure}{scaled}_{self.method}"


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


def names(tier: str | None = None) -> tuple[str, ...]:
    """Names of every recipe of one tier, or of all."""
    return tuple(cell.name for cell in cells(tier))


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
    known = {cell.name: cell for cell in cells()}
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    cell = known[name]
    module = importlib.import_module(f"{__name__}.{TIERS[cell.tier][0]}")
    return module.experiment(cell)


def _own(name: str) -> Callable[[], "Experiment"]:
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"A recipe 'module:function' must be importable; got '{name}': {error}. "
            "Run from the directory that holds the module, or install it."
        ) from None
    if not callable(getattr(module, function, None)):
        raise ValueError(unknown(f"function of {module_name}", function, vars(module)))
    return getattr(module, function)
