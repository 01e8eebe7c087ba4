"""How a perturbation grows through recurrences that follow their input, and how far it could."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.diagnostics.base import Probe, Subject
from robustssm.diagnostics.systems import Driven, LayerSystem, layer_inputs, same, systems_of
from robustssm.ops.interval_scan import Box, largest_change, linear_bounds
from robustssm.ops.time_varying import Decomposition, decompose, jacobian_gain, product
from robustssm.records import Axis, ProbeResult, Quantity

Numbers = list[float | None]

_CLAIM = "qi2024exploring, theorem 4.1.1"
_PARTS = ("frozen", "shift", "cross")
_TEXTS = {
    "frozen": "H(u) du, the change with the parameters that the clean input chose",
    "shift": "(H(u + du) - H(u)) (u + du), the change because other parameters were chosen",
    "cross": "twice the inner product of the frozen part and the shift",
}


@register("error_growth")
@settings
class ErrorGrowth(Probe):
    """What an attack's perturbation becomes in every layer, by position and by cause.

    A layer with parameters that follow its input u applies y = H(u) u. Where u moves to u + du, y
    moves by H(u) du + (H(u + du) - H(u)) (u + du), exactly; theorem 4.1.1 of the paper has the
    first part alone. Where H does not follow u (S4, S4D, DSS, S5, Mega's average) the second is 0.

    `certified` bounds max|dy| of the scan for every du of which no entry exceeds the largest entry
    of the measured one: exact for linear systems, by interval arithmetic, and loose, for Mamba.
    `reached` is what gradient ascent found in the same box.

    Source: qi2024exploring, theorem 4.1.1 and its equation 10, which it corrects.
    """

    examples: Annotated[int, Field(ge=1)] = 8
    """Most examples looked at, the first ones of the subject."""
    steps: Annotated[int, Field(ge=2)] = 8
    """Of the ascent behind `reached`; linear systems need one."""
    jacobian_steps: Annotated[int, Field(ge=1)] = 12
    """Most steps of the power iteration behind `jacobian_gain`."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-2
    """The power iteration stops when no estimate rises by more than this part of itself."""

    def measure(self, subject: Subject) -> ProbeResult:
        """Measures every sequence layer at the clean and the adversarial examples.

        Raises:
            Inapplicable: If no layer has a recurrence; names the layers found.
            ValueError: If there are no examples.
        """
        count = min(self.examples, len(subject.x))
        if not count:
            raise ValueError(
                violation("`ErrorGrowth`", "be given at least one example", "none", "Give some.")
            )
        clean = layer_inputs(subject.model, subject.x[:count])
        moved = layer_inputs(subject.model, subject.x_adv[:count])
        noise = subject.noise.select(torch.arange(count)).fork("error_growth")
        rows = [
            self._layer(system, clean[number], moved[number], noise)
            for number, system in enumerate(systems_of(subject.model, clean))
        ]
        remarks = [row.reason for row in rows if row.reason]
        if all(row.radius == 0 for row in rows if row.radius is not None):
            remarks.append("The attack moved no example, so there are no shares of the change.")
        return ProbeResult(
            probe=self.name,
            settings={**self.record(subject), "looked_at": count},
            quantities=tuple(_quantities(rows)),
            remarks=tuple(dict.fromkeys([*remarks, *_looseness(rows)])),
        )

    def _layer(
        self,
        system: LayerSystem,
        clean: tuple[Tensor, Tensor],
        moved: tuple[Tensor, Tensor],
        noise: Noise,
    ) -> "_Row":
        before, after = ((m - c).double() for c, m in zip(clean, moved, strict=True))
        x, y = (f.double() for f in clean)
        sizes = before.flatten(1).norm(dim=1)
        gains = (after.flatten(1).norm(dim=1) / sizes)[sizes > 0]
        jacobian = jacobian_gain(
            system.module, x, noise=noise, tolerance=self.tolerance, most=self.jacobian_steps
        )
        row = _Row(
            label=system.label,
            growth=_relative(after, y),
            input_shift=_relative(before, x),
            amplification=gains.mean().item() if len(gains) else None,
            jacobian_gain=jacobian.value.mean().item(),
            reason=system.reason and f"Layer {system.label}: {system.reason}",
        )
        if system.driven is None:
            return row
        with torch.no_grad():
            other = system.at(moved[0])
            if same(system.driven.recurrence, other.recurrence):
                other = Driven(recurrence=system.driven.recurrence, u=other.u)
            parts = _decomposed(system.driven, other)
        row.shares, row.shares_by_position = _shares(parts)
        row.measured = parts.change.abs().flatten(1).amax(1).mean().item()
        self._bound(row, system, other.u - system.driven.u)
        return row

    def _bound(self, row: "_Row", system: LayerSystem, du: Tensor) -> None:
        assert system.driven is not None
        u, recurrence = system.driven.u, system.driven.recurrence
        radius = du.abs().flatten(1).amax(1)
        row.radius = radius.mean().item()
        box, selective = Box.around(u, radius), system.selective()
        if not system.driven.varies:
            with torch.no_grad():
                allowed = linear_bounds(recurrence, box).radius
            reached = largest_change(
                lambda d: product(recurrence, d), du, radius, allowed=allowed, steps=1
            )
        elif selective is not None:
            with torch.no_grad():
                clean = selective.run(u)
                allowed = selective.bounds(box).distance(clean).clamp(min=0)
            reached = largest_change(
                lambda d: selective.run(u + d) - clean,
                du,
                radius,
                allowed=allowed,
                steps=self.steps,
            )
        else:
            row.reason = (
                f"Layer {row.label}: {system.kind} varies with its input in a way that has no "
                "interval bound here, so nothing is certified."
            )
            return
        row.certified = allowed.flatten(1).amax(1).mean().item()
        row.reached = reached.mean().item()

    @classmethod
    def samples(cls) -> tuple["Probe", ...]:
        """The defaults, and as little as possible."""
        return (cls(), cls(examples=2, steps=2, jacobian_steps=1))


@dataclass(kw_only=True, eq=False)
class _Row:
    """What was found of one layer; None where it has no such thing."""

    label: str
    growth: Numbers
    input_shift: Numbers
    amplification: float | None
    jacobian_gain: float
    reason: str
    shares: Sequence[float | None] = (None,) * len(_PARTS)
    shares_by_position: Sequence[Numbers] | None = None
    measured: float | None = None
    radius: float | None = None
    certified: float | None = None
    reached: float | None = None


def _relative(change: Tensor, clean: Tensor) -> Numbers:
    """Norm of the change over that of the clean sequence by position, mean over examples."""
    change, clean = change.norm(dim=-1), clean.norm(dim=-1)
    ratio = torch.where(change > 0, change / clean, torch.zeros_like(change)).mean(0)
    return list(ratio.tolist())


def _decomposed(clean: Driven, moved: Driven) -> Decomposition:
    if clean.recurrence is not moved.recurrence:
        return decompose(clean.recurrence, moved.recurrence, clean.u, moved.u)
    frozen = product(clean.recurrence, moved.u - clean.u)
    return Decomposition(frozen=frozen, shift=torch.zeros_like(frozen))


def _shares(parts: Decomposition) -> tuple[Numbers, list[Numbers]]:
    """Of the squared change over all positions, and at each; None where nothing changed."""
    squares = parts.squares().sum(1)
    floor = 1e-24 * squares[-1].max()  # below it a change is rounding

    def share(part: Tensor, whole: Tensor) -> float | None:
        return (part / whole).item() if whole > floor else None

    total = squares.sum(1)
    by_position = [
        [share(part, whole) for part, whole in zip(row, squares[-1], strict=True)]
        for row in squares[:-1]
    ]
    return [share(part, total[-1]) for part in total[:-1]], by_position


def _quantities(rows: Sequence[_Row]) -> Iterable[Quantity]:
    layer = Axis(name="layer", labels=tuple(row.label for row in rows))
    positions = max(len(row.growth) for row in rows)
    position = Axis(name="position", labels=tuple(str(t) for t in range(positions)))

    def along(numbers: Iterable[Sequence[float | None] | None]) -> tuple[float | None, ...]:
        padded = ([*(row or ()), *[None] * (positions - len(row or ()))] for row in numbers)
        return tuple(value for row in padded for value in row)

    for name, text, found in (
        ("growth", "|dy| / |y| of what the layer writes", (row.growth for row in rows)),
        ("input_shift", "|dx| / |x| of what the layer reads", (row.input_shift for row in rows)),
    ):
        yield Quantity(
            name=name,
            text=f"{text}, norms over channels, at every position, mean over examples.",
            values=along(found),
            axes=(layer, position),
            unit="1",
        )
    for index, part in enumerate(_PARTS):
        text = f"Share of the squared change of the scan's output that is {_TEXTS[part]}"
        yield Quantity(
            name=part,
            text=f"{text}; over all positions and examples.",
            values=tuple(row.shares[index] for row in rows),
            axes=(layer,),
            unit="1",
            claim=_CLAIM,
        )
        by_position = (row.shares_by_position for row in rows)
        yield Quantity(
            name=f"{part}_by_position",
            text=f"{text}; at every position, over all examples.",
            values=along(None if found is None else found[index] for found in by_position),
            axes=(layer, position),
            unit="1",
        )
    for name, text, unit in _SCALARS:
        yield Quantity(
            name=name,
            text=text,
            values=tuple(getattr(row, name) for row in rows),
            axes=(layer,),
            unit=unit,
            bounds="reached" if name == "certified" else "",
            side="upper" if name == "certified" else "",
        )


_SCALARS = (
    (
        "amplification",
        "|dy| / |dx| of the layer, norms over the sequence, mean over examples.",
        "1",
    ),
    (
        "jacobian_gain",
        "Largest singular value of the layer's Jacobian at the clean input, from below, by power "
        "iteration; mean over examples.",
        "1",
    ),
    (
        "radius",
        "Largest |entry| of du, the change of what drives the scan; mean over examples.",
        "",
    ),
    ("measured", "Largest |entry| of the change of the scan's output; mean over examples.", ""),
    ("reached", "The same for the worst du found within the radius; mean over examples.", ""),
    ("certified", "What the same cannot exceed within the radius; mean over examples.", ""),
)


def _looseness(rows: Sequence[_Row]) -> list[str]:
    ratios = [
        f"{row.certified / row.reached:.3g} in layer {row.label}"
        for row in rows
        if row.certified is not None and row.reached and math.isfinite(row.certified)
    ]
    if not ratios:
        return []
    return [f"The certified change over the one reached is {', '.join(ratios)}; 1 is tight."]
