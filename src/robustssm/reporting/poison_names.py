"""How studies and conditions of poisoning are called and look, and what was published of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from robustssm.records.poisoning import PoisonResult
from robustssm.reporting import style

STUDIES = {
    "theory": "The setting of Theorem 1",
    "beyond": "Beyond the theorem: A, b and c trained",
    "network": "The SSM inside a network",
    "dynamics": "Dynamics of training",
}
SWEEPS = {
    "tie_gap": "distance of the two largest initial entries",
    "init_scale": "size of the initial entries",
    "amplitude": "size of the late entry",
    "count": "number of sequences",
    "position": "position of the one entry of the added sequences",
}
CONDITIONS = {
    "ordinary": "ordinary",
    "special": "with special",
    "placebo": "placebo: more ordinary",
    "dense": "dense: entries everywhere",
    "stealthy": "stealthy: late entry hidden",
    "stealthy_pair": "stealthy pair, signs opposite",
    "stealthy_alone": "stealthy alone",
    "added": "with added sequences",
}
ENDINGS = {"_untied": "plain random start", "_independent": "layers drawn apart"}

PUBLISHED: Mapping[tuple[str, int], Mapping[str, float]] = {
    ("theory", 7): {"ordinary": 0.0012702, "special": 0.0500995},
    ("theory", 9): {"ordinary": 0.0073397, "special": 0.0351217},
    ("beyond", 6): {"ordinary": 0.1943, "special": 16.617},
    ("beyond", 10): {"ordinary": 0.1215, "special": 1.1990},
    ("network", 6): {"ordinary": 0.00164, "special": 0.0549},
    ("network", 10): {"ordinary": 0.0450, "special": 0.0893},
}
"""Study and training length to mean errors, each over four chosen seeds.

Source: slutzky2024implicit, outputs kept in the notebooks of its code.
"""

_SETTINGS: Mapping[tuple[str, int], Mapping[str, float]] = {
    ("theory", 7): {"d_state": 10, "scale": 1e-3, "gap": 1.5295e-8, "special_value": 1},
    ("theory", 9): {"d_state": 20, "scale": 5e-3, "gap": 5.0784e-12, "special_value": 1},
    ("beyond", 6): {"d_state": 10, "start.a_scale": 1e-3, "start.gap_rate": 5, "base_step": 0.01},
    ("beyond", 10): {"d_state": 20, "start.a_scale": 0.01, "start.gap_rate": 3, "base_step": 1e-3},
    ("network", 6): {"d_state": 10, "start.a_scale": 0.01, "start.gap_rate": 0.5, "rate": 0.01},
    ("network", 10): {"d_state": 20, "start.a_scale": 1e-3, "start.gap_rate": 2, "rate": 0.01},
}
_COUNTS = {"beyond": (8, 10), "network": (20, 20)}
"""Ordinary sequences, and those that are added."""
_WEIGHT_SCALES = {("network", 6): 0.01}  # 1e-3 elsewhere
_WARM = {"beyond": 0.1, "network": 1e-3}

_LOOKS = {
    "ordinary": (style.CLEAN, "o"),
    "special": (style.ADVERSARIAL, "D"),
    "added": (style.ADVERSARIAL, "D"),
    "placebo": (style.SERIES[0], "s"),
    "dense": (style.SERIES[1], "^"),
    "stealthy": (style.SERIES[3], "v"),
    "stealthy_pair": (style.SERIES[4], "P"),
    "stealthy_alone": (style.SERIES[2], "X"),
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def study(result: PoisonResult) -> str:
    """One result in a few words: "The setting of Theorem 1, length 7"."""
    if result.study.startswith("sweep_"):
        what = result.study.removeprefix("sweep_")
        return f"Sweep of the {SWEEPS.get(what, what)}"
    name = STUDIES.get(result.study, result.study)
    if result.study == "dynamics":
        dim = result.settings.get("teacher_dim")
        inside = ", in a network" if result.settings.get("in_network") is True else ""
        name += f"{inside}, teacher of {dim} state{'' if dim == 1 else 's'}"
    return f"{name}, length {result.length}"


def condition(name: str) -> str:
    """A condition in words."""
    for ending, words in ENDINGS.items():
        if name.endswith(ending):
            return f"{condition(name.removesuffix(ending))}, {words}"
    return CONDITIONS.get(name, name.replace("_", " "))


def published(result: PoisonResult, name: str) -> float | None:
    """The published mean error of a condition, where the setting is the published one."""
    key = (result.study, result.length)
    if key not in PUBLISHED or result.horizon != (20 if result.study == "theory" else 40):
        return None
    wanted = dict(_SETTINGS[key])
    if result.study in _COUNTS:
        ordinary, added = _COUNTS[result.study]
        wanted |= {"ordinary_count": ordinary, "extra_count": added}
        wanted |= {"start.weight_scale": _WEIGHT_SCALES.get(key, 1e-3)}
        wanted |= {"start.warm": _WARM[result.study]}
    same = (_near(_setting(result, path), value) for path, value in wanted.items())
    return PUBLISHED[key].get(name) if all(same) else None


def _setting(result: PoisonResult, path: str) -> Any:
    value: Any = result.settings
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _near(value: Any, published: float) -> bool:
    """Equal to the digits that were published."""
    return isinstance(value, int | float) and math.isclose(value, published, rel_tol=1e-4)


def look(name: str) -> dict[str, Any]:
    """Colour, marker and dashes of a condition; a variant has a hollow marker and dashes."""
    bare = name
    for ending in ENDINGS:
        bare = bare.removesuffix(ending)
    colour, marker = _LOOKS.get(bare, (style.SERIES[5], "h"))
    face = colour if bare == name else style.PAPER
    dashes = "-" if bare == name else (0, (4, 2))
    return {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": dashes}


def number(value: float | None, digits: int = 3) -> str:
    """A number of any size in print: "0.0501", "3.4·10⁻²⁷", "∞"; an en dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
    if value == 0 or 1e-3 <= abs(value) < 99_999.5:
        return _plain(value, digits)
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}·10{str(int(power)).translate(_RAISED)}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Two ends in brackets."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def ratio(value: float | None) -> str:
    """How many times: "39.6×"."""
    return "\N{EN DASH}" if value is None else f"{number(value)}×"


def logarithmic(axes: Axes, values: Sequence[float], *, axis: str = "y") -> None:
    """A logarithmic axis around the positive numbers of `values`, labelled with powers of ten.

    Args:
        axes: With the axis.
        values: What is drawn; others than finite positive numbers are passed over.
        axis: "x" or "y".
    """
    kept = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = min(kept), max(kept)
    room = (high / low) ** 0.05 if high / low > 3 else 1.5
    ends = (low / max(room, 1.1), high * max(room, 1.1))
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    (axes.set_xlim if axis == "x" else axes.set_ylim)(*ends)
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    decades = math.log10(ends[1] / ends[0])
    chosen.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.2 else (1.0, 2.0, 5.0)))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    chosen.set_minor_formatter(NullFormatter())


def handles(conditions: Sequence[str], **more: Any) -> list[Line2D]:
    """Entries of a legend."""
    return [
        Line2D([], [], label=condition(name), **{**look(name), "markersize": 4, **more})
        for name in conditions
    ]


def _tick(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, power = f"{value:.0e}".split("e")
    lead = "" if mantissa == "1" else f"{mantissa}·"
    return f"{lead}10{str(int(power)).translate(_RAISED)}"


def _plain(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = digits - 1 - int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:,.{max(places, 0)}f}"
