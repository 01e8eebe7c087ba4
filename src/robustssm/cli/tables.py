"""What the command line prints as tables."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from robustssm import recipes
from robustssm.core.config import field_types, lookup, names
from robustssm.records import wilson


def recipes_table(tier: str | None) -> Table:
    """Tiers with their number of recipes, or every recipe of one tier."""
    if tier is None:
        table = Table("tier", "what it is", "recipes", title="Recipes")
        for name, (_, about) in recipes.TIERS.items():
            table.add_row(name, about, str(len(recipes.names(name))))
        table.caption = (
            "TIER.STRUCTURE[_ads_ACTIVATION]_METHOD, for example digits.s4_trades; `robustssm list "
            "TIER` names them all, `robustssm show RECIPE` shows the settings"
        )
        return table
    table = Table("recipe", "structure", "adaptive scaling", "training")
    for cell in recipes.cells(tier):
        table.add_row(cell.name, cell.structure, cell.ads or "", cell.method)
    table.caption = recipes.TIERS[tier][1]
    return table


def parts_table(kind: str) -> Table:
    """Registered names of a kind, each with its first docstring line and settings."""
    table = Table("name", "what it is", "settings", title=f"Registered: {kind}")
    for name in names(kind):
        cls = lookup(kind, name)
        about = (cls.__doc__ or "").strip().split("\n")[0]
        table.add_row(name, about, ", ".join(field_types(cls)))
    return table


def result_table(record: Mapping[str, Any]) -> Table:
    """Clean and robust accuracy of the best and the last checkpoint, with intervals."""
    best, last = record["checkpoints"]["best"], record["checkpoints"]["last"]
    table = Table(
        "accuracy, %", f"best (epoch {best['epoch']})", f"last (epoch {last['epoch']})", "diff"
    )
    for name in ("clean", *best["attacks"]):
        cells = [_percent(result, name) for result in (best, last)]
        table.add_row(name, *cells, f"{100 * record['difference'][name]:+.1f}")
    used = record["test_examples"]
    table.caption = (
        f"{used['used']} of {used['all']} test examples, 95 % Wilson intervals; "
        f"best by {record['selection'].replace('_', ' ')}"
    )
    for warning in best["warnings"] + last["warnings"]:
        table.caption += f"\n[bold yellow]{warning['name']}[/]: {warning['message']}"
    return table


def _percent(result: Mapping[str, Any], name: str) -> str:
    count = result["counts"][name]
    low, high = wilson(count, result["n"])
    return f"{100 * count / result['n']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
