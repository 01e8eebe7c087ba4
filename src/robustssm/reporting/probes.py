"""What probes found of runs: read from their files, picked by place, and listed in full."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from robustssm.records import Axis, ProbeResult, Quantity, read_json
from robustssm.reporting import names
from robustssm.reporting.base import (
    MISSING,
    Block,
    Cell,
    Fold,
    Note,
    Notes,
    Paragraph,
    Row,
    RowGroup,
    Table,
)
from robustssm.reporting.cells import MINUS
from robustssm.reporting.runs import LeftOut, Run

FOLDER = "probes"
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError)
_MANY = 12  # places along an axis, beyond which a table tells of it by a few numbers


def read(path: Path, *, run: str) -> tuple[dict[str, ProbeResult], tuple[LeftOut, ...]]:
    """Reads every `probes/*.json` of a run directory, by the name of the file; and what is damaged.

    Args:
        path: The run directory.
        run: What the report calls the run.
    """
    results, left_out = {}, []
    for file in sorted((path / FOLDER).glob("*.json")):
        try:
            results[file.stem] = _checked(names.printable(read_json(file)))
        except _DAMAGE as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            text = f"{kind}{error}".replace(f"{path}/", "")
            inside = f"{FOLDER}/{file.name}"
            reason = text if inside in text else f"{inside} must be what a probe found; {text}"
            label = str(names.printable(f"{run}/{inside}"))
            left_out.append(
                LeftOut(name=label, state="damaged", reason=str(names.printable(reason)))
            )
    return results, tuple(left_out)


def found(run: Run, probe: str) -> ProbeResult | None:
    """What a probe found of a run: the file of its own name, or else the first that is of it."""
    own = run.probes.get(probe)
    if own is not None and own.probe == probe:
        return own
    return next((result for result in run.probes.values() if result.probe == probe), None)


def quantity(run: Run, probe: str, name: str) -> Quantity | None:
    """One quantity of a probe of a run, or None."""
    result = found(run, probe)
    if result is None:
        return None
    return next((each for each in result.quantities if each.name == name), None)


def labels(quantity: Quantity, axis: str) -> tuple[str, ...]:
    """The places along an axis; none if the quantity lacks it."""
    return next((a.labels for a in quantity.axes if a.name == axis), ())


def select(quantity: Quantity, **places: str) -> tuple[float | None, ...]:
    """The values at these places, in order; an axis that the quantity lacks narrows nothing."""
    chosen = []
    for axis in quantity.axes:
        wanted = places.get(axis.name)
        chosen.append([at for at, own in enumerate(axis.labels) if wanted in (None, own)])
    sizes = [len(axis.labels) for axis in quantity.axes]
    values = []
    for indices in product(*chosen):
        offset = 0
        for at, size in zip(indices, sizes, strict=True):
            offset = offset * size + at
        values.append(quantity.values[offset])
    return tuple(values)


def average(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there, which may be infinite or NaN; None if none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def along(quantity: Quantity, axis: str, **places: str) -> tuple[float | None, ...]:
    """Values along an axis, averaged over all others that `places` leaves open."""
    return tuple(
        average(select(quantity, **places, **{axis: label})) for label in labels(quantity, axis)
    )


def finite(values: Sequence[float | None]) -> list[float]:
    """The values that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def of_run(run: Run, name: str) -> Iterator[Block]:
    """A fold for each probe of a run, with every quantity.

    Args:
        run: A finished run.
        name: Of the fold of the run.
    """
    for number, result in enumerate(run.probes.values(), 1):
        yield Fold(
            name=f"{name}-probe-{number}",
            summary=f"Probe {result.probe}: {len(result.quantities)} quantities",
            blocks=tuple(_blocks(result)),
        )


def number(value: float | None) -> Cell:
    """Four digits; infinities and what is no number by their signs."""
    return MISSING if value is None else Cell(value=digits(value))


def digits(value: float, places: int = 4) -> str:
    """A number with so many significant digits."""
    if math.isnan(value):
        return "not a number"
    text = "∞" if math.isinf(value) else f"{abs(value):.{places}g}"
    return f"{MINUS}{text}" if value < 0 else text


def percent(change: float) -> str:
    """A relative change, "+50 %" for 0.5."""
    if not math.isfinite(change):
        return digits(change)
    size = abs(100 * change)
    text = f"{size:,.0f}" if size >= 99.5 else f"{size:.2g}"
    return f"{'+' if change > 0 else MINUS if change < 0 else ''}{text}\N{NO-BREAK SPACE}%"


def power(exponent: int) -> str:
    """A power of ten, "10⁻⁶"."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _checked(data: Any) -> ProbeResult:
    """The result, once its words are known to be words."""
    words = [data["probe"], *data["remarks"]]
    for each in data["quantities"]:
        words += [each[key] for key in ("name", "text", "unit", "claim", "bounds", "side")]
        words += [text for axis in each["axes"] for text in (axis["name"], *axis["labels"])]
    wrong = [word for word in words if not isinstance(word, str)]
    if wrong:
        raise ValueError(f"names and texts must be words; got {wrong[0]!r:.40}.")
    for key in ("settings", "provenance"):
        if not isinstance(data[key], dict):
            raise ValueError(f"{key} must be an object; got {data[key]!r:.40}.")
    return ProbeResult.from_dict(data)


def _blocks(result: ProbeResult) -> Iterator[Block]:
    if result.remarks:
        notes = tuple(Note(label=f"({at})", text=t) for at, t in enumerate(result.remarks, 1))
        yield Notes(notes=notes, repeated=True)
    plain = [each for each in result.quantities if not each.axes]
    if plain:
        yield _single(plain)
    yield from (_table(each) for each in result.quantities if each.axes)
    if not result.quantities:
        yield Paragraph(text="The probe found no quantity.")


def _single(quantities: Sequence[Quantity]) -> Table:
    rows = tuple(
        Row(head=q.name, cells=(Cell(value=_meaning(q)), number(q.values[0]))) for q in quantities
    )
    return Table(
        caption="Quantities of the whole model.",
        corner="Quantity",
        columns=(("What it is",), ("Value",)),
        groups=(RowGroup(rows=rows),),
        words=1,
    )


def _table(quantity: Quantity) -> Table:
    """The last axis goes across if it is short; if it is long, a few numbers tell of it."""
    *outer, last = quantity.axes
    size = len(last.labels)
    long = size > _MANY
    columns = ("First", "Least", "Median", "Largest", "Last") if long else last.labels
    shown = f" Over {size} places of {last.name}, in order." if long else ""
    axes = ", ".join(f"{axis.name} ({len(axis.labels)})" for axis in quantity.axes)
    rows = []
    for at, place in enumerate(product(*(axis.labels for axis in outer))):
        values = quantity.values[at * size : (at + 1) * size]
        cells = _spread(values) if long else tuple(number(value) for value in values)
        rows.append(Row(head=_place(outer, place), cells=cells))
    return Table(
        caption=f"{quantity.name}: {_meaning(quantity)} Axes: {axes}.{shown}",
        corner=" · ".join(axis.name for axis in outer) or last.name,
        columns=tuple((column,) for column in columns),
        groups=(RowGroup(rows=tuple(rows)),),
    )


def _spread(values: Sequence[float | None]) -> tuple[Cell, ...]:
    there = sorted(v for v in values if v is not None and not math.isnan(v))
    if not there:
        return (MISSING,) * 5
    middle = (there[(len(there) - 1) // 2] + there[len(there) // 2]) / 2
    return tuple(number(v) for v in (values[0], there[0], middle, there[-1], values[-1]))


def _meaning(quantity: Quantity) -> str:
    text = quantity.text if quantity.text.endswith(".") else f"{quantity.text}."
    if quantity.unit and quantity.unit != "1":
        text += f" Unit: {quantity.unit}."
    if quantity.bounds:
        text += f" {quantity.side.capitalize()} bound of {quantity.bounds}."
    return f"{text} Claim: {quantity.claim}." if quantity.claim else text


def _place(axes: Sequence[Axis], place: Sequence[str]) -> str:
    return " · ".join(
        f"{axis.name} {label}" if axis.name in ("layer", "state", "position") else label
        for axis, label in zip(axes, place, strict=True)
    )
