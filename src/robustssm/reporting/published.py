"""The published tables, and which of our cells they may stand beside: those of the same setting.

Source: qi2024exploring, version 1, tables 1 and 2, as kept in published.csv; of Mega's rows under
adversarial training that version prints one per data set, which its prose says is PGD-AT.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import CLEAN, Group

Metric = str
"""One of `METRICS`."""
METRICS: Mapping[Metric, str] = {"clean": "Clean", "pgd10": "PGD-10", "aa": "AutoAttack"}
_KEYS: Mapping[str, Metric] = {
    CLEAN: "clean",
    "pgd-10": "pgd10",
    "pgd_released-10": "pgd10",
    "autoattack_standard": "aa",
}
"""What we call a number to what the paper does; an adapted suite has no published counterpart."""
_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "mnist": {"eps": 0.3, "epochs": 100, "model.num_layers": 2},
    "cifar10": {"eps": 0.031, "epochs": 180, "model.num_layers": 4},
}
_ALWAYS = {"batch_size": 256, "model.d_model": 128}
_EPS = 0.02  # relative: 0.031 and 8/255 are both in the paper
_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed row: accuracies in percent, None where nothing is printed."""

    source: str
    dataset: str
    structure: str
    """With its adaptive scaling, as our tables call it: "S4 + AdS-ReLU"."""
    method: str
    numbers: Mapping[tuple[Metric, str], float | None]
    """(metric, "best" or "last") to percent."""


@lru_cache(maxsize=1)
def table() -> tuple[Published, ...]:
    """Every printed row, in order."""
    text = files("robustssm.reporting").joinpath("published.csv").read_text(encoding="utf-8")
    made = []
    for line in csv.DictReader(text.splitlines()):
        scaled = f" + AdS-{line['scaling']}" if line["scaling"] else ""
        numbers = {
            (metric, checkpoint): float(value)
            if (value := line[f"{metric}_{checkpoint}"])
            else None
            for metric in METRICS
            for checkpoint in ("best", "last")
        }
        made.append(
            Published(
                source=line["source"],
                dataset=line["dataset"],
                structure=line["structure"] + scaled,
                method=line["method"],
                numbers=numbers,
            )
        )
    return tuple(made)


def row(dataset: str, structure: str, method: str) -> Published | None:
    """The printed row of a cell, if there is one.

    Args:
        dataset: "MNIST" or "CIFAR-10".
        structure: With its scaling; scaling and shift counts as scaling, as which of the two the
            printed rows had is not known.
        method: Display name.
    """
    wanted = (dataset, structure.replace(" + AdSS-", " + AdS-"), method)
    return next((r for r in table() if (r.dataset, r.structure, r.method) == wanted), None)


def beside(group: Group, key: str, checkpoint: str) -> float | None:
    """The published number that may stand beside one of ours, in percent; None if there is none.

    Only for real MNIST and CIFAR-10 at the published radius, size of the model and length of
    training, and only for the same attack.

    Args:
        group: The cell.
        key: `cells.CLEAN`, `cells.WORST` or the label of an attack.
        checkpoint: "best" or "last".
    """
    if key not in _KEYS or not all(_same_setting(run.experiment, run.threat) for run in group.runs):
        return None
    name = str(group.runs[0].experiment["dataset"]["name"])
    found = row(_DATASETS[name], group.runs[0].structure, group.method)
    return found.numbers.get((_KEYS[key], checkpoint)) if found else None


def _same_setting(experiment: Mapping[str, Any], threat: Mapping[str, Any]) -> bool:
    dataset = experiment["dataset"]
    wanted = _SETTINGS.get(str(dataset["name"]))
    if wanted is None or dataset.get("pool", 1) != 1 or dataset.get("train_limit") is not None:
        return False
    rest = {k for k, v in threat.items() if v is not None} - {"norm", "eps", "bounds", "name"}
    eps = threat.get("eps")
    if threat.get("norm") != "linf" or rest or not isinstance(eps, int | float):
        return False
    if not math.isclose(eps, wanted["eps"], rel_tol=_EPS):
        return False
    sizes = {key: value for key, value in wanted.items() if key != "eps"} | _ALWAYS
    return all(_at(experiment, path) == value for path, value in sizes.items())


def _at(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def orientation(groups: Sequence[Group]) -> Table | None:
    """Printed rows of the same structures and methods, on the paper's own data.

    Args:
        groups: Cells that have no published counterpart.

    Returns:
        The table, or None if the paper has none of them.
    """
    rows = []
    columns = [(data, name) for data in ("MNIST", "CIFAR-10") for name in METRICS]
    for group in groups:
        structure = group.runs[0].structure
        found = {data: row(data, structure, group.method) for data, _ in columns}
        if any(found.values()):
            entries = tuple(_number(found[data], metric) for data, metric in columns)
            rows.append(Row(head=f"{structure}, {group.method}", cells=entries))
    if not rows:
        return None
    return Table(
        caption=(
            "Printed best accuracies of qi2024exploring, version 1, for the same structures and "
            "methods, on its data, at its sizes and radii: no counterparts of the numbers above, "
            "from which nothing may be subtracted."
        ),
        corner="Structure, method",
        columns=tuple((data, METRICS[metric]) for data, metric in columns),
        groups=(RowGroup(rows=tuple(dict.fromkeys(rows))),),
    )


def _number(row: Published | None, metric: Metric) -> Cell:
    value = row.numbers.get((metric, "best")) if row else None
    return MISSING if value is None else Cell(value=f"{value:.2f}")
