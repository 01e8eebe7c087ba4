"""Sections on theory: bounds and what breaks them, growth of errors, spectra.

Source: qi2024exploring, Theorem 4.1.1.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import TypeVar

from robustssm.records import ProbeResult
from robustssm.reporting import broken_bounds, names, probes, spectrum_figures, theory_figures
from robustssm.reporting.base import (
    MISSING,
    Block,
    Cell,
    Figure,
    Row,
    RowGroup,
    Table,
)
from robustssm.reporting.broken_bounds import lines_of
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import Run
from robustssm.reporting.theory_figures import GROWTH

T = TypeVar("T")
Drawn = tuple[Group, Run, T]
"""A cell, the run that stands for it in a figure, and what is drawn of that run."""


def bounds(groups: Sequence[Group]) -> Iterator[Block]:
    """Figures of bounds, and the table of those that do not hold.

    Args:
        groups: All cells, in order.
    """
    drawn = [
        (group, run, found)
        for group in groups
        if (run := next((r for r in group.runs if lines_of(r)), None)) and (found := lines_of(run))
    ]
    if drawn:
        yield from broken_bounds.blocks(groups)
    for number, (section, method, members) in enumerate(_by_method(drawn), 1):
        yield Figure(
            name=f"bounds-{number}",
            title=f"Error bounds, {section[0]}, {method}",
            caption=(
                f"{section[0]}, {section[1]}; {method}. For every layer that a bound covers: what "
                "is bounded, and its bounds; triangles point towards what they bound, the grey "
                "bar joins the tightest proper ones. Logarithmic; a mark on the left edge is "
                f"0 or less. {_seeds(members)}"
            ),
            panels=tuple(
                theory_figures.intervals(rows, group.structure) for group, _, rows in members
            ),
        )


def growth(groups: Sequence[Group]) -> Iterator[Block]:
    """Figures of errors along the sequence.

    Args:
        groups: All cells, in order.
    """
    drawn = [
        each
        for each in _drawn(groups, GROWTH)
        if any(theory_figures.grows(each[2], shares=shares) for shares in (False, True))
    ]
    for number, (section, method, members) in enumerate(_by_method(drawn), 1):
        yield Figure(
            name=f"growth-{number}",
            title=f"Growth of errors over positions, {section[0]}, {method}",
            caption=(
                f"{section[0]}, {section[1]}; {method}. Growth of a perturbation along the "
                "sequence, on test data; one line per layer, paler for later layers. Shares: what "
                "part of the squared change is due to the parameters that the clean input chose, "
                "to the choice of others, and to both together. "
                f"{_seeds(members)}"
            ),
            panels=tuple(
                theory_figures.growth(result, f"{group.structure}{words}", shares=shares)
                for group, _, result in members
                for shares, words in ((False, ""), (True, ", shares by cause"))
                if theory_figures.grows(result, shares=shares)
            ),
        )


def spectrum(groups: Sequence[Group]) -> Iterator[Block]:
    """Discs, gains and the table of scalars.

    Args:
        groups: All cells, in order.
    """
    every = _drawn(groups, spectrum_figures.PROBE)
    discs = [each for each in every if spectrum_figures.has_eigenvalues(each[2])]
    sections = list(dict.fromkeys(group.section for group, _, _ in discs))
    for number, section in enumerate(sections, 1):
        members = [each for each in discs if each[0].section == section]
        members.sort(key=lambda each: names.rank(names.STRUCTURES, each[0].structure))
        titled = [(f"{group.structure} · {group.method}", result) for group, _, result in members]
        yield Figure(
            name=f"eigenvalues-{number}",
            title=f"Eigenvalues of the state matrices, {section[0]}",
            caption=(
                f"{section[0]}, {section[1]}: eigenvalues of all layers on the unit disc, before "
                f"and after training. Of more than {spectrum_figures.DOTS} in a disc, evenly "
                f"spaced ones are drawn. {_seeds(members)}"
            ),
            panels=(spectrum_figures.disc(titled, _across(members)),),
            wide=True,
        )
    gains = [each for each in every if spectrum_figures.has_gain(each[2])]
    for number, (section, method, members) in enumerate(_by_method(gains), 1):
        yield Figure(
            name=f"gain-{number}",
            title=f"Gain over frequency, {section[0]}, {method}",
            caption=(
                f"{section[0]}, {section[1]}; {method}: gain of the SSM over frequency, before and "
                f"after training; one line per layer, paler for later layers. {_seeds(members)}"
            ),
            panels=tuple(
                spectrum_figures.gain(result, group.structure) for group, _, result in members
            ),
        )
    yield from _scalars(groups)


def _drawn(groups: Sequence[Group], probe: str) -> list[Drawn[ProbeResult]]:
    """Cells with a probed run, and the one of the lowest seed."""
    made = []
    for group in groups:
        found = [(run, r) for run in group.runs if (r := probes.found(run, probe)) is not None]
        if found:
            made.append((group, *found[0]))
    return made


def _by_method(
    drawn: Sequence[Drawn[T]],
) -> Iterator[tuple[tuple[str, str], str, list[Drawn[T]]]]:
    keys = dict.fromkeys((group.section, group.method) for group, _, _ in drawn)
    places = list(dict.fromkeys(group.section for group, _, _ in drawn))
    for section, method in sorted(
        keys, key=lambda k: (places.index(k[0]), names.rank(names.METHODS, k[1]))
    ):
        yield (
            section,
            method,
            [d for d in drawn if (d[0].section, d[0].method) == (section, method)],
        )


def _across(members: Sequence[Drawn[T]]) -> int:
    """Methods beside each other where every structure has all; else up to four."""
    methods = len({group.method for group, _, _ in members})
    complete = len(members) == methods * len({group.structure for group, _, _ in members})
    return methods if complete and 1 < methods <= 5 else min(4, len(members))


def _seeds(members: Sequence[Drawn[T]]) -> str:
    several = any(len(group.runs) > 1 for group, _, _ in members)
    return "Of several seeds the lowest is drawn." if several else "One seed each."


def _scalars(groups: Sequence[Group]) -> Iterator[Table]:
    """Means over layers, before and after training; several seeds: mean and range."""
    keys = [
        (name, state)
        for name in spectrum_figures.SCALARS
        for state in spectrum_figures.CHECKPOINTS
        if any(_scalar(run, name, state) is not None for group in groups for run in group.runs)
    ]
    if not keys:
        return
    made: dict[str, list[Row]] = {}
    for group in sorted(groups, key=lambda g: names.rank(names.METHODS, g.method)):
        cells = tuple(_mean([_scalar(run, *key) for run in group.runs]) for key in keys)
        if any(cell != MISSING for cell in cells):
            title = f"{', '.join(group.section)}; {group.method}"
            made.setdefault(title, []).append(Row(head=group.structure, cells=cells))
    yield Table(
        caption="Spectra, mean over layers; several seeds: mean and range.",
        corner="Structure",
        columns=tuple((name.replace("_", " ").capitalize(), state) for name, state in keys),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
    )


def _scalar(run: Run, name: str, state: str) -> float | None:
    found = probes.quantity(run, spectrum_figures.PROBE, name)
    if found is None or state not in (probes.labels(found, "checkpoint") or ("best",)):
        return None
    return probes.average(probes.select(found, checkpoint=state, split="test", statistic="median"))


def _mean(values: Sequence[float | None]) -> Cell:
    there = [value for value in values if value is not None]
    if not there:
        return MISSING
    spread = f"[{probes.digits(min(there), 3)}, {probes.digits(max(there), 3)}]"
    details = (spread,) if len(there) > 1 else ()
    return Cell(value=probes.digits(mean(there), 3), details=details)


SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Group]], Iterator[Block]]], ...] = (
    ("bounds", "What theory allows", bounds),
    ("growth", "Growth of errors over positions", growth),
    ("spectrum", "Spectra of the state matrices", spectrum),
)
"""Name, heading and contents."""
