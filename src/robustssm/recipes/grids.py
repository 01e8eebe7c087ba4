"""Grids: named sets of recipes that belong to one table or one question, as plain values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from robustssm.core.errors import unknown
from robustssm.recipes.controls import CONTROLS

_TABLES = {
    "dataset.test": "300",
    "evaluation_examples": "null",
    "attacks": '[{"name": "pgd", "steps": 10, "step_size": 0.25}, {"name": "autoattack"}]',
    "evaluation_batch_size": "300",
}
"""On digits: a test split of one sixth, all of it attacked at once, by PGD-10 and by AutoAttack."""
_ALL_TESTED = {"dataset.test": "300", "evaluation_examples": "null"}
"""On digits_paper and digits_released: the same examples, under the attacks of the tier."""
_TABLE1_STRUCTURES = ("mega", "mamba", "s5", "s4", "dss")
_TABLE1_METHODS = ("trades", "pgd", "yopo", "free", "standard")
_TABLE2_STRUCTURES = tuple(
    f"{structure}{ads}"
    for ads in ("_ads_relu", "_ads_sigmoid", "_ads_tanh", "")
    for structure in ("s4", "dss")
)
"""In the order in which they should be started, slow ones first."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of a grid: a recipe and what is changed of it, alike for every seed."""

    recipe: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Dotted path to text, as `--set` takes them."""
    label: str = ""
    """Tells entries of one recipe apart in names of directories; letters, digits, "-", "_", "="."""

    @property
    def name(self) -> str:
        """The recipe, and the label after a plus if there is one."""
        recipe = self.recipe.replace(":", ".")
        return f"{recipe}+{self.label}" if self.label else recipe


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Recipes to run with several seeds."""

    name: str
    title: str
    """One line: what question the grid answers."""
    entries: tuple[Entry, ...]
    """With different names; in the order in which they should be started, slow ones first."""


def grids() -> tuple[str, ...]:
    """Names of the grids that come with the package."""
    return tuple(_GRIDS)


def grid(name: str) -> Grid:
    """The grid called `name`.

    Raises:
        ValueError: If there is none; the nearest name is offered.
    """
    if name not in _GRIDS:
        raise ValueError(unknown("grid", name, _GRIDS))
    return _GRIDS[name](name)


def _digits_table1(name: str) -> Grid:
    return Grid(
        name=name,
        title="Structures under every training method (table 1 of the paper) on 8x8 digits",
        entries=_entries("digits", _TABLE1_STRUCTURES, _TABLE1_METHODS, _TABLES),
    )


def _digits_table2(name: str) -> Grid:
    return Grid(
        name=name,
        title="Adaptive scaling on S4 and DSS (table 2 of the paper) on 8x8 digits",
        entries=_entries("digits", _TABLE2_STRUCTURES, ("trades", "pgd"), _TABLES),
    )


def _digits_methods(name: str) -> Grid:
    slow_first = ("awp", "mart", "trades", "pgd", "yopo", "free", "jacobian", "fast", "standard")
    return Grid(
        name=name,
        title="S4 under all nine training methods on 8x8 digits",
        entries=_entries("digits", ["s4"], slow_first, _TABLES),
    )


def _digits_controls(name: str) -> Grid:
    beside = ("mega", "s4_ads_relu", "dss_ads_relu", "s4", "dss")
    controls = [each for each, control in CONTROLS.items() if "digits" in control.tiers]
    return Grid(
        name=name,
        title="What adaptive scaling and attention are worth: the controls on 8x8 digits",
        entries=_entries("digits", (*beside, *controls), ("trades", "pgd"), _TABLES),
    )


def _digits_released(name: str) -> Grid:
    structures = ("mega", "mamba", "s5", "s4_ads_relu", "dss_ads_relu", "s4", "dss")
    return Grid(
        name=name,
        title="What all faults of the released code together do, cell by cell, on 8x8 digits",
        entries=tuple(
            entry
            for tier in ("digits_paper", "digits_released")
            for entry in _entries(tier, structures, _TABLE1_METHODS, _ALL_TESTED)
        ),
    )


def _digits_bugs(name: str) -> Grid:
    paper = tuple(
        Entry(recipe=f"digits_paper.{cell}", overrides=_ALL_TESTED)
        for cell in dict.fromkeys(cell for cells, _ in BUGS.values() for cell in cells)
    )
    faults = tuple(
        Entry(recipe=f"digits_paper.{cell}", overrides={**_ALL_TESTED, **changes}, label=bug)
        for bug, (cells, changes) in BUGS.items()
        for cell in cells
    )
    return Grid(
        name=name,
        title="One fault of the released code at a time, beside the paper's recipe, on 8x8 digits",
        entries=(*paper, *faults),
    )


_RELEASED_PGD = '{"name": "pgd_released", "steps": 10, "step_size": 0.25}'
_COLLAPSING = ("mega_yopo", "mamba_yopo", "mega_pgd", "mamba_pgd", "s4_pgd")
"""S4 under PGD, and the cells that collapse with all faults together."""
BUGS: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "euler": (("mamba_pgd", "mamba_yopo"), {"model.layer.discretization": "euler"}),
    "no-input-norm": (("mega_pgd", "mega_yopo"), {"model.input_norm": "false"}),
    "no-gelu": (
        ("s4_pgd",),
        {"model.block.activation": "none", "model.block.mixing_activation": "none"},
    ),
    "pgd-released": (
        ("mega_pgd", "mamba_pgd", "s4_pgd"),
        {"objective.attack": _RELEASED_PGD, "monitor.attack": _RELEASED_PGD},
    ),
    "no-eps-warmup": (_COLLAPSING, {"objective.eps_warmup": "0"}),
    "no-clipping": (_COLLAPSING, {"clip_norm": "null"}),
    "no-aids": (_COLLAPSING, {"objective.eps_warmup": "0", "clip_norm": "null"}),
    "ads-shift-and-bias": (
        ("s4_ads_relu_pgd",),
        {"model.layer.scaling.form": "scale_shift", "model.layer.scaling.bias": "true"},
    ),
    "ads-no-gelu": (
        ("s4_ads_relu_pgd",),
        {"model.block.activation": "none", "model.block.mixing_activation": "none"},
    ),
    "free-variant": (
        ("s4_free",),
        {"objective.variant": "released", "objective.eps_warmup": "0"},
    ),
    "free-all-epochs": (("s4_free",), {"epochs": "20"}),
    "yopo-variant": (("mega_yopo", "mamba_yopo", "s4_yopo"), {"objective.variant": "released"}),
}
"""Label to the cells of `digits_paper` that it is tried in, and the fault as overrides.

"no-aids" is two at once, without which correct training may stall (docs/controls.md).
The order of tokens is not among them: with one colour both are the same. For that there is the grid
`cifar10.token_order`.
"""


def _mnist14_table(name: str) -> Grid:
    overrides = {
        "dataset.train_limit": "8000",
        "epochs": "12",
        "evaluation_examples": "200",
        "attacks": _attacks(0.13333333333333333),
        "monitor.train": "200",
        "monitor.validation": "500",
        "monitor.test": "200",
    }
    structures = ("mega", "mamba", "s4_ads_relu", "dss_ads_relu", "s4")
    return Grid(
        name=name,
        title="Five structures on MNIST at 14x14, trained on 8,000 images: real data for a CPU",
        entries=_entries("mnist14", structures, ("trades", "pgd"), overrides),
    )


def _attacks(step_size: float, *first: str) -> str:
    """PGD-10 and AutoAttack, after other attacks if there are any."""
    pgd = f'{{"name": "pgd", "steps": 10, "step_size": {step_size}}}'
    return f'[{", ".join((*first, pgd))}, {{"name": "autoattack"}}]'


_STEPS = {"mnist": 0.04 / 0.3, "cifar10": 0.007 / 0.031}
_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def _published(name: str) -> Grid:
    """Table 1 or 2 of the paper at its full protocol; `..._released` as its code ran."""
    dataset, _, table = name.partition(".")
    released = table.endswith("_released")
    step, first = _STEPS[dataset], []
    if released:
        first = [f'{{"name": "pgd_released", "steps": 10, "step_size": {step}}}']
    cells: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "table1": (_TABLE1_STRUCTURES, _TABLE1_METHODS),
        "table2": (_TABLE2_STRUCTURES, ("trades", "pgd")),
    }
    structures, methods = cells[table.removesuffix("_released")]
    whose = "as the released code ran" if released else "by its text"
    return Grid(
        name=name,
        title=f"Table {table[5]} of the paper on {_TITLES[dataset]}, {whose}; for GPUs",
        entries=_entries(
            f"{dataset}_released" if released else dataset,
            structures,
            methods,
            {"attacks": _attacks(step, *first)},
        ),
    )


def _token_order(name: str) -> Grid:
    small = {
        "model.d_model": "32",
        "model.num_layers": "2",
        "dataset.train_limit": "4000",
        "epochs": "6",
        "batch_size": "32",
        "optimizer.lr": "4e-3",
        "objective.attack.steps": "3",
        "objective.attack.step_size": "0.5",
        "monitor.train": "100",
        "monitor.validation": "500",
        "monitor.test": "0",
        "monitor.every": "2",
        "evaluation_examples": "1000",
        "attacks": '[{"name": "pgd", "steps": 10, "step_size": 0.25}]',
    }
    return Grid(
        name=name,
        title="Pixels of CIFAR-10 in true raster order against the released code's scrambled one",
        entries=tuple(
            Entry(
                recipe=f"cifar10.{structure}_pgd",
                overrides={**small, **sizes, "model.tokens": tokens},
                label=tokens,
            )
            for structure, sizes in (
                ("s5", {"model.layer.d_state": "32"}),
                ("s4", {"model.layer.d_state": "16"}),
            )
            for tokens in ("raster", "legacy_raster")
        ),
    )


def _entries(
    tier: str, models: Sequence[str], methods: Sequence[str], overrides: Mapping[str, str]
) -> tuple[Entry, ...]:
    return tuple(
        Entry(recipe=f"{tier}.{model}_{method}", overrides=overrides)
        for model in models
        for method in methods
    )


_GRIDS: Mapping[str, Callable[[str], Grid]] = {
    "digits.table1": _digits_table1,
    "digits.table2": _digits_table2,
    "digits.methods": _digits_methods,
    "digits.controls": _digits_controls,
    "digits.released": _digits_released,
    "digits.bugs": _digits_bugs,
    "mnist14.table": _mnist14_table,
    "mnist.table1": _published,
    "mnist.table2": _published,
    "mnist.table1_released": _published,
    "mnist.table2_released": _published,
    "cifar10.table1": _published,
    "cifar10.table2": _published,
    "cifar10.table1_released": _published,
    "cifar10.table2_released": _published,
    "cifar10.token_order": _token_order,
}
