"""How structures, checkpoints and layers look, so that each looks the same in every figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robustssm.reporting import style
from robustssm.reporting.cells import Group

MARKERS = "os^DvP"
FULL = len(style.SERIES)
"""So many structures are in one figure, at most."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Structures that stand in one figure, each with a colour of its own."""

    structures: tuple[str, ...]
    scaled: bool
    """Whether they have adaptive scaling: Figure 4 of the paper; Figure 3 is of the others."""


def families(groups: Sequence[Group]) -> list[Family]:
    """Structures as figures show them: those without adaptive scaling, then those with it.

    Args:
        groups: All cells of the report, so that a structure looks the same in all its figures.
    """
    made = []
    for scaled in (False, True):
        names = list(dict.fromkeys(g.structure for g in groups if _scaled(g) == scaled))
        for start in range(0, len(names), FULL):
            made.append(Family(structures=tuple(names[start : start + FULL]), scaled=scaled))
    return made


def colour(at: int) -> str:
    """Of the structure at a place of the list of structures."""
    return style.SERIES[at % FULL]


def line(at: int, *, every: int = 1) -> dict[str, Any]:
    """Of the structure at a place: colour and marker.

    Args:
        at: Place in the list of structures of its figure.
        every: A marker at every so many points; each line starts them elsewhere.
    """
    return {
        "color": colour(at),
        "marker": MARKERS[at % len(MARKERS)],
        "markersize": 3.2,
        "markevery": (at % every, every),
        "linewidth": 1.2,
    }


def columns(handles: Sequence[Any], width: float, beside: float = 0.0) -> list[list[Any]]:
    """Entries of a legend in as many columns as fit, read from left to right.

    Args:
        handles: In reading order, with labels.
        width: Of the figure, in inches.
        beside: Inches that are taken already.
    """
    for number in range(len(handles), 1, -1):
        made = [list(handles[at::number]) for at in range(number)]
        taken = (0.56 + 0.078 * max(len(h.get_label()) for h in column) for column in made)
        if beside + sum(taken) <= width:
            return made
    return [list(handles)] if handles else []


def blank(axes: Axes, text: str) -> None:
    """Says in an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")


def handles(structures: Sequence[str], limit: int = 30) -> list[Line2D]:
    """Entries of a legend for lines of structures."""
    return [
        Line2D([], [], label=style.shortened(name, limit), **line(at))
        for at, name in enumerate(structures)
    ]


def _scaled(group: Group) -> bool:
    model: Mapping[str, object] = group.runs[0].experiment["model"]
    layer = model.get("layer", model)
    return isinstance(layer, Mapping) and bool(layer.get("scaling"))
