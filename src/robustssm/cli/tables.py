"""What the command line prints as tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustssm import recipes
from robustssm.core.config import field_types, lookup, names
from robustssm.records import EvaluationResult, ProbeResult
from robustssm.reporting import verdicts
from robustssm.reporting.names import STRUCTURES, SUITES

_STYLES = {"reliable": "bold green", "suspicious": "bold yellow", "unreliable": "bold red"}
"""Of a word that says it too: colour alone says nothing."""


def recipes_table(tier: str | None) -> Table:
    """Tiers with their number of recipes, or every model and training method of one tier."""
    if tier is None:
        table = Table("tier", "what it is", "recipes", title="Recipes")
        for name, (_, about) in recipes.TIERS.items():
            table.add_row(name, about, str(len(recipes.names(name))))
        table.caption = (
            "TIER.STRUCTURE[_ads_ACTIVATION]_METHOD, for example digits.s4_trades; `robustssm list "
            "TIER` names its models and methods, `robustssm show RECIPE` shows the settings"
        )
        return table
    table = Table("model", "what it is", "compare with", title=recipes.TIERS[tier][1])
    for structure in recipes.STRUCTURES:
        about = f"{STRUCTURES[structure]}, plain or with adaptive scaling"
        table.add_row(Text(f"{structure}[_ads_ACTIVATION]"), about, "")
    for name in dict.fromkeys(cell.control for cell in recipes.controls(tier)):
        control = recipes.CONTROLS[name]
        table.add_row(name, control.about, control.beside)
    table.caption = (
        f"{tier}.MODEL_METHOD, for example {tier}.s4_ads_relu_trades; "
        f"ACTIVATION: {', '.join(each for each in recipes.ADS if each)}; "
        f"METHOD: {', '.join(recipes.METHODS)}"
    )
    return table


def parts_table(kind: str) -> Table:
    """Registered names of a kind, each with its first docstring line and settings."""
    table = Table("name", "what it is", "settings", title=f"Registered: {kind}")
    for name in names(kind):
        cls = lookup(kind, name)
        about = (cls.__doc__ or "").strip().split("\n")[0]
        table.add_row(name, about, ", ".join(field_types(cls)))
    return table


def result_table(record: Mapping[str, Any]) -> Group:
    """Verdict, then clean and robust accuracy of every checkpoint, and remarks on attacks.

    Args:
        record: The contents of an evaluation.json: with "checkpoints", or one evaluation by itself.
    """
    parts = record.get("checkpoints") or {record.get("checkpoint", "model"): record}
    results = {name: EvaluationResult.from_dict(part) for name, part in parts.items()}
    heads = [
        name if part.get("epoch") is None else f"{name} (epoch {part['epoch']})"
        for name, part in parts.items()
    ]
    both = {"best", "last"} <= set(results)
    table = Table("accuracy, %", *heads, *(["diff"] if both else []))
    for key in dict.fromkeys(("clean", *(k for r in results.values() for k in r.survived))):
        cells = [_percent(result, key) for result in results.values()]
        if both:
            cells.append(_difference(results["best"], results["last"], key))
        table.add_row(Text(SUITES.get(key, key)), *cells)
    table.caption = Text("; ".join(_caption(record, next(iter(results.values())).n)))
    return Group(*_verdicts(results), table, *_deviations(results))


def probe_table(result: ProbeResult) -> Table:
    """Every quantity of a probe with its range over all places, and what it is."""
    looked = result.settings
    title = f"{result.probe}: {looked.get('examples')} examples of {' and '.join(looked['splits'])}"
    table = Table("quantity", "least", "median", "largest", "what it is", title=title)
    for quantity in result.quantities:
        values = sorted(v for v in quantity.values if v is not None and not math.isnan(v))
        shown = [_short(values[at]) for at in (0, len(values) // 2, -1)] if values else ["-"] * 3
        unit = "" if quantity.unit in ("", "1") else f" [{quantity.unit}]"
        bound = f" ({quantity.side} bound of {quantity.bounds})" if quantity.bounds else ""
        table.add_row(quantity.name, *shown, Text(f"{quantity.text}{unit}{bound}"))
    if result.remarks:
        table.caption = Text(" ".join(result.remarks))
    return table


def _short(value: float) -> str:
    return f"{value:.3g}"


def _caption(record: Mapping[str, Any], n: int) -> Iterator[str]:
    used = record.get("test_examples", {"used": n, "all": n})
    yield f"{n} of {used['all']} test examples, 95 % Wilson intervals"
    if "selection" in record:
        yield f"best by {record['selection'].replace('_', ' ')}"


def _verdicts(results: Mapping[str, EvaluationResult]) -> Iterator[Text]:
    """One line per verdict, its reasons below it, and what a time limit left undone."""
    said: dict[tuple[verdicts.Verdict, str], list[str]] = {}
    for name, result in results.items():
        key = (verdicts.verdict(result), verdicts.meaning(result))
        said.setdefault(key, []).append(name)
    for (word, meaning), names_ in said.items():
        which = "" if len(said) == 1 else f" ({' and '.join(names_)})"
        yield Text.assemble((word, _STYLES[word]), f"{which}: {meaning}")
        yield from _reasons([results[name] for name in names_])
    partial = {text: None for result in results.values() if (text := verdicts.partial(result))}
    for text in partial:
        yield Text.assemble(("partial", _STYLES["suspicious"]), text.removeprefix("partial"))


def _reasons(results: Sequence[EvaluationResult]) -> Iterator[Text]:
    found = dict.fromkeys(warning for result in results for warning in result.warnings)
    for warning in found:
        style = _STYLES["unreliable" if warning.severity == "invalid" else "suspicious"]
        yield Text.assemble("  ", (warning.name, style), f": {warning.message}")


def _deviations(results: Mapping[str, EvaluationResult]) -> Iterator[Text]:
    found = {
        f"{name}: {text}": None
        for result in results.values()
        for name, texts in verdicts.deviations(result).items()
        for text in texts
    }
    yield from (Text(text) for text in found)


def _share(result: EvaluationResult, key: str) -> float | None:
    return result.clean_accuracy if key == "clean" else result.attacks.get(key)


def _difference(best: EvaluationResult, last: EvaluationResult, key: str) -> Text:
    high, low = _share(best, key), _share(last, key)
    if high is None or low is None or not verdicts.same_examples(best, last):
        return Text("-")
    return Text(f"{100 * (high - low):+.1f}")


def _percent(result: EvaluationResult, key: str) -> Text:
    share = _share(result, key)
    if share is None:
        return Text("-")
    low, high = result.interval(key)
    return Text(f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
