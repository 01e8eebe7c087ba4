"""What a probe found: named numbers with axes, and what each of them bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a quantity: what varies along it, and the names of its places."""

    name: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"`Axis('{self.name}')` must have labels that differ; got {list(self.labels)}."
            )


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Numbers on a grid of named places; None where there is none (a part that a layer lacks)."""

    name: str
    text: str
    """What it is, in one sentence."""
    values: tuple[float | None, ...]
    """In the order of the places, the last axis fastest."""
    axes: tuple[Axis, ...] = ()
    unit: str = ""
    claim: str = ""
    """Name of the published claim that it bears on, if there is one."""
    bounds: str = ""
    """Name of the quantity that it bounds at every place, if it is a bound."""
    side: Literal["upper", "lower", ""] = ""

    def __post_init__(self) -> None:
        size = math.prod(len(axis.labels) for axis in self.axes)
        if len(self.values) != size:
            raise ValueError(
                f"`Quantity('{self.name}')` must have one value for each of its {size} places; "
                f"got {len(self.values)}."
            )
        if bool(self.bounds) != bool(self.side):
            raise ValueError(
                f"`Quantity('{self.name}')` must have both `bounds` and `side`, or neither; got "
                f"bounds='{self.bounds}', side='{self.side}'."
            )

    @property
    def places(self) -> tuple[Mapping[str, str], ...]:
        """Axis name to label, for every value."""
        labels = product(*(axis.labels for axis in self.axes))
        names = [axis.name for axis in self.axes]
        return tuple(dict(zip(names, each, strict=True)) for each in labels)

    def at(self, **labels: str) -> float | None:
        """The value at one place.

        Raises:
            KeyError: If the labels do not name exactly one place.
        """
        found = self.where(**labels)
        if len(found) != 1:
            raise KeyError(f"`{self.name}` has {len(found)} values at {labels}, not one.")
        return found[0]

    def where(self, **labels: str) -> tuple[float | None, ...]:
        """All values whose places have these labels, in order."""
        return tuple(
            value
            for place, value in zip(self.places, self.values, strict=True)
            if all(place.get(name) == label for name, label in labels.items())
        )


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What one probe measured of one model."""

    probe: str
    settings: Mapping[str, Any]
    """Of the probe, of the threat and of what was looked at, as JSON-able values."""
    quantities: tuple[Quantity, ...]
    remarks: tuple[str, ...] = ()
    """What a reader must know before believing the numbers; whole sentences."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [quantity.name for quantity in self.quantities]
        if len(set(names)) < len(names):
            raise ValueError(f"`ProbeResult('{self.probe}')` must name each quantity once: {names}")

    def quantity(self, name: str) -> Quantity:
        """The quantity of that name.

        Raises:
            KeyError: If there is none.
        """
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise KeyError(f"{self.probe} has no quantity '{name}'.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; numbers that are not finite become text: "inf", "-inf", "nan"."""
        return {
            "probe": self.probe,
            "settings": dict(self.settings),
            "remarks": list(self.remarks),
            "quantities": [
                {
                    "name": q.name,
                    "text": q.text,
                    "unit": q.unit,
                    "claim": q.claim,
                    "bounds": q.bounds,
                    "side": q.side,
                    "axes": [{"name": a.name, "labels": list(a.labels)} for a in q.axes],
                    "values": [_to_json(value) for value in q.values],
                }
                for q in self.quantities
            ],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ProbeResult":
        """The inverse of `to_dict`.

        Raises:
            KeyError: If a field is missing.
            ValueError: If fields contradict each other.
        """
        quantities = (
            Quantity(
                name=q["name"],
                text=q["text"],
                unit=q["unit"],
                claim=q["claim"],
                bounds=q["bounds"],
                side=q["side"],
                axes=tuple(Axis(name=a["name"], labels=tuple(a["labels"])) for a in q["axes"]),
                values=tuple(None if v is None else float(v) for v in q["values"]),
            )
            for q in data["quantities"]
        )
        return cls(
            probe=data["probe"],
            settings=data["settings"],
            quantities=tuple(quantities),
            remarks=tuple(data["remarks"]),
            provenance=data["provenance"],
        )


def join(results: Mapping[str, ProbeResult], axis: str) -> ProbeResult:
    """One result from several of the same probe: `axis` becomes the first axis of every quantity.

    Args:
        results: Label on the new axis to result, at least one; settings are those of the first.
        axis: Name of the new axis: "split", "checkpoint", "run".

    Raises:
        ValueError: If the results are not of the same probe, or a quantity has other places.
    """
    first = next(iter(results.values()))
    for label, other in results.items():
        shapes = [[(q.name, q.axes) for q in result.quantities] for result in (first, other)]
        if other.probe != first.probe or shapes[0] != shapes[1]:
            raise ValueError(
                f"`join` must be given results of one probe with the same quantities and axes; "
                f"'{label}' of {other.probe} differs from the first, of {first.probe}."
            )
    labels = Axis(name=axis, labels=tuple(results))
    joined = [
        Quantity(
            name=q.name,
            text=q.text,
            unit=q.unit,
            claim=q.claim,
            bounds=q.bounds,
            side=q.side,
            axes=(labels, *q.axes),
            values=tuple(v for r in results.values() for v in r.quantity(q.name).values),
        )
        for q in first.quantities
    ]
    remarks = dict.fromkeys(remark for result in results.values() for remark in result.remarks)
    return ProbeResult(
        probe=first.probe,
        settings=first.settings,
        quantities=tuple(joined),
        remarks=tuple(remarks),
        provenance=first.provenance,
    )


def violations(result: ProbeResult, *, tolerance: float = 1e-6) -> tuple[str, ...]:
    """Where a bound of `result` does not bound what it should, as sentences.

    A bound without a quantity of that name, or with other axes, is one too.

    Args:
        result: What to check.
        tolerance: Relative slack for rounding, at least 0.
    """
    found: list[str] = []
    names = {quantity.name: quantity for quantity in result.quantities}
    for bound in result.quantities:
        if not bound.bounds:
            continue
        measured = names.get(bound.bounds)
        if measured is None or measured.axes != bound.axes:
            found.append(f"{bound.name} bounds {bound.bounds}, which is not there at its places.")
            continue
        for place, limit, value in zip(bound.places, bound.values, measured.values, strict=True):
            if limit is None or value is None:
                continue
            slack = tolerance * max(abs(limit), abs(value))
            over = value - limit if bound.side == "upper" else limit - value
            if not (over <= slack or (math.isinf(limit) and math.isinf(value))):
                found.append(
                    f"{bound.name} at {dict(place)} is {limit}, {bound.bounds} is {value}."
                )
    return tuple(found)


def _to_json(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
