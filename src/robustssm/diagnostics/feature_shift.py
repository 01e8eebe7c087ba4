"""Where in a network a perturbation grows or shrinks, part by part (qi2024exploring, fig. 3, 4)."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable, violation
from robustssm.core.observation import Part
from robustssm.core.types import Inputs
from robustssm.diagnostics.base import Probe, Subject
from robustssm.diagnostics.capture import Activation, Place, capture, layers_of
from robustssm.ops import shift
from robustssm.ops.shift import Shift
from robustssm.records import Axis, ProbeResult, Quantity

COMPONENTS: tuple[Part, ...] = (
    "ssm",
    "ads",
    "linear",
    "attention",
    "gate",
    "activation",
    "norm",
    "residual",
    "feed_forward",
    "convolution",
    "projection",
    "layer",
)
"""The paper's components first."""

CLAIM = "qi2024exploring, figures 3 and 4"


class _Metric(NamedTuple):
    name: str
    text: str
    unit: str
    claim: str = ""


METRICS = (
    _Metric(
        "mse",
        "|f' - f|^2 / T over |f|, Frobenius norms over T positions and all channels",
        "unit of the features",
        CLAIM,
    ),
    _Metric(
        "kl",
        "KL(S(f) || S(f')), summed over channels, over |f|, S the softmax over positions",
        "nat / unit of the features",
        CLAIM,
    ),
    _Metric("cosine", "1 - cosine of the angle between f and f'", "1"),
    _Metric("relative", "|f' - f| / |f|, Frobenius norms over positions and channels", "1"),
    _Metric("cka", "1 - linear centred kernel alignment of f and f' over all examples", "1"),
)

_SCALES = (
    "mse and kl are the paper's and follow the scale of the features (mse in proportion): a part "
    "that makes features smaller lowers them whatever it does to the perturbation. cosine, "
    "relative and cka have no scale."
)


@register("feature_shift")
@settings
class FeatureShift(Probe):
    """Clean features f against adversarial ones f', before and after every part of every layer.

    The paper defines d(f', f) / |f| with d the mean squared error |f' - f|^2 / T or the divergence
    KL(S(f) || S(f')), S the softmax over the sequence, and draws (after - before) / before,
    averaged over layers. Where it is silent this is read so: the model is in eval mode; |f| is the
    Frobenius norm over positions and channels, not squared; squares and divergences are summed over
    channels; d / |f| is taken for each example and then averaged over examples, before and after
    apart; the change is that of these two means, for each layer; and its mean over layers weighs
    all layers with that part alike. "Before" is what the part reads, so a residual's is its skip,
    and norms are parts of their own. A change from 0 to 0 is None, and from 0 to more infinite.

    Parts that occur several times in a layer are averaged, before and after apart. Beside the
    paper's metrics, which follow the scale of the features, stand three that do not; all five are 0
    where nothing moved. `shift_map` says at which positions the shift sits in what the last part of
    a layer writes: what its block hands on, if it stands in one.

    Source: qi2024exploring, figures 3 and 4; kornblith2019similarity (cka).
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples looked at together: all their activations, clean and adversarial, are in memory."""

    def measure(self, subject: Subject) -> ProbeResult:
        """Measures every part on the subject's clean and adversarial examples.

        Raises:
            Inapplicable: If there are no sequence layers, or none that reports its parts.
            ValueError: If there are no examples.
        """
        layers = layers_of(subject.model)
        if not len(subject.x):
            raise ValueError(
                violation("`FeatureShift`", "be given at least one example", "none", "Give some.")
            )
        totals: dict[Place, tuple[Shift, Shift]] = {}
        maps: dict[int, Tensor] = {}
        x, x_adv = subject.x.split(self.batch_size), subject.x_adv.split(self.batch_size)
        for clean, shifted in zip(x, x_adv, strict=True):
            self._add(subject.model, clean, shifted, totals, maps)
        values = _finished(totals)
        remarks = [_SCALES, *_averaged(values)]
        if torch.equal(subject.x, subject.x_adv):
            remarks.append("The attack moved no example, so nothing was shifted.")
        labels = tuple(str(layer) for layer in range(len(layers)))
        return ProbeResult(
            probe=self.name,
            settings=self.record(subject),
            quantities=(
                *_quantities(values, Axis(name="layer", labels=labels)),
                _map(maps, len(subject.x), Axis(name="layer", labels=labels)),
            ),
            remarks=tuple(remarks),
        )

    def _add(
        self,
        model: nn.Module,
        clean: Inputs,
        shifted: Inputs,
        totals: dict[Place, tuple[Shift, Shift]],
        maps: dict[int, Tensor],
    ) -> None:
        """Adds a batch to the sums, by place, and to those of the map, by layer."""
        measured = _Once()
        last: dict[int, tuple[Tensor, Tensor]] = {}
        for one, other in _pairs(model, clean, shifted):
            now = measured(one.before, other.before), measured(one.after, other.after)
            last[one.place.layer] = one.after, other.after
            so_far = totals.get(one.place)
            totals[one.place] = (
                now if so_far is None else (so_far[0].plus(now[0]), so_far[1].plus(now[1]))
            )
        for layer, (f, g) in last.items():
            here = shift.by_position(f, g).sum(0)
            maps[layer] = maps[layer] + here if layer in maps else here


class _Once:
    """Measures shifts; what one part writes and the next reads only once."""

    def __init__(self):
        self._known: dict[tuple, tuple[Shift, Tensor, Tensor]] = {}

    def __call__(self, clean: Tensor, shifted: Tensor) -> Shift:
        key = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (clean, shifted))
        if key not in self._known:  # which keeps the tensors, so that no other gets their memory
            self._known[key] = shift.measured(clean, shifted), clean, shifted
        return self._known[key][0]


def _pairs(
    model: nn.Module, clean: Inputs, shifted: Inputs
) -> Iterable[tuple[Activation, Activation]]:
    """The activations of both, place by place."""
    one, other = capture(model, clean), capture(model, shifted)
    places = [[each.place for each in found] for found in (one, other)]
    if not one or places[0] != places[1]:
        kinds = sorted({type(layer).__name__ for layer in layers_of(model).values()})
        reason = "ran other parts on other inputs" if one else "reported no parts"
        raise Inapplicable(
            f"Feature shift compares the parts of layers; {', '.join(kinds)} {reason}. Have the "
            "layer call `core.observation.observe`, or put it into a `Block`."
        )
    return zip(one, other, strict=True)


_Values = Mapping[tuple[int, Part], list[tuple[tuple[float, ...], tuple[float, ...]]]]
"""Layer and part to what was measured before and after each of its occurrences."""


def _finished(totals: Mapping[Place, tuple[Shift, Shift]]) -> _Values:
    both = torch.stack([side.values() for pair in totals.values() for side in pair])
    rows = [tuple(row) for row in both.tolist()]  # the one copy from the device
    found: dict[tuple[int, Part], list] = {}
    for place, before, after in zip(totals, rows[::2], rows[1::2], strict=True):
        found.setdefault((place.layer, place.part), []).append((before, after))
    return found


def _averaged(values: _Values) -> list[str]:
    """One sentence for the parts that occur several times."""
    times = {part: len(found) for (_, part), found in values.items() if len(found) > 1}
    listed = ", ".join(f"{part} ({n} times)" for part, n in times.items())
    return [f"Parts that occur several times in a layer are averaged: {listed}."] if times else []


def _quantities(values: _Values, layer: Axis) -> Iterable[Quantity]:
    component = Axis(name="component", labels=COMPONENTS)
    places: list[tuple[int, Part]] = [(int(n), part) for n in layer.labels for part in COMPONENTS]
    for index, metric in enumerate(METRICS):
        before, after = (
            [_mean(one[side][index] for one in values.get(place, ())) for place in places]
            for side in (0, 1)
        )
        changes = [change(*pair) for pair in zip(before, after, strict=True)]
        for name, numbers in (("before", before), ("after", after)):
            yield Quantity(
                name=f"{metric.name}_{name}",
                text=f"{metric.text}: {name} the part, mean over examples.",
                values=tuple(numbers),
                axes=(layer, component),
                unit=metric.unit,
            )
        yield Quantity(
            name=f"{metric.name}_change",
            text=f"(after - before) / before of {metric.name}; 0.5 is half as much again.",
            values=tuple(changes),
            axes=(layer, component),
            unit="1",
            claim=metric.claim,
        )
        for name, summary in (("mean", _mean), ("median", _median)):
            per_part = (changes[at :: len(COMPONENTS)] for at in range(len(COMPONENTS)))
            yield Quantity(
                name=f"{metric.name}_change_{name}",
                text=f"The {name} over layers of {metric.name}_change.",
                values=tuple(summary(v for v in part if v is not None) for part in per_part),
                axes=(component,),
                unit="1",
                claim=metric.claim if name == "mean" else "",
            )


def _map(maps: Mapping[int, Tensor], count: int, layer: Axis) -> Quantity:
    longest = max(len(sums) for sums in maps.values())
    values: list[float | None] = []
    for label in layer.labels:
        sums = maps.get(int(label))
        row = [] if sums is None else (sums / count).tolist()
        values += [*row, *[None] * (longest - len(row))]
    return Quantity(
        name="shift_map",
        text="|f' - f| / |f| at every position of what the last part of the layer (norm and "
        "residual included) writes, norms over channels, mean over examples.",
        values=tuple(values),
        axes=(layer, Axis(name="position", labels=tuple(str(t) for t in range(longest)))),
        unit="1",
    )


def change(before: float | None, after: float | None) -> float | None:
    """(after - before) / before; None where one is missing or both are 0."""
    if before is None or after is None or before == after == 0:
        return None
    if before == 0:
        return math.nan if math.isnan(after) else math.inf
    return math.nan if math.isinf(before) else (after - before) / before


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    if any(map(math.isnan, found)):
        return math.nan
    return statistics.median(found) if found else None
