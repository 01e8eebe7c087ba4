"""What must stand beside the numbers of a poisoning study: what they do not show."""

from collections.abc import Iterator

from robustssm.records.poisoning import Contrast, PoisonResult
from robustssm.reporting import poison_names as said
from robustssm.reporting import poison_tables as tables
from robustssm.reporting.base import Note

NO_EFFECT = 1.5
"""A ratio of medians up to this is called no effect."""


def of(result: PoisonResult, first: int) -> tuple[list[Note], dict[str, tuple[str, ...]]]:
    """Notes on one result, and the conditions that they concern.

    Args:
        result: What was found.
        first: Number of the first note; labels are unique in a report.

    Returns:
        The notes, and condition to their labels.
    """
    notes: list[Note] = []
    marks: dict[str, tuple[str, ...]] = {}
    found = [*_loss(result), *_vanishes(result), *_placebo(result), *_ends(result), *_seeds(result)]
    for text, conditions in found:
        label = f"P{first + len(notes)}"
        notes.append(Note(label=label, text=text))
        for condition in conditions:
            marks[condition] = (*marks.get(condition, ()), label)
    return notes, marks


def sweep_note(result: PoisonResult) -> str:
    """Where along a sweep the poison does nothing, in a sentence; "" if it cannot be told."""
    rows = {(row.label, row.condition): row.median for row in result.sweep}
    labels = dict.fromkeys(label for label, _ in rows)
    ratios = {
        label: rows[label, "special"] / below
        for label in labels
        if (label, "special") in rows and (below := rows.get((label, "ordinary")))
    }
    if not ratios:
        return ""
    most = max(ratios, key=lambda label: ratios[label])
    none = [label for label, ratio in ratios.items() if ratio <= NO_EFFECT]
    text = f"The ratio special / ordinary is largest at {most} ({said.ratio(ratios[most])})."
    if none:
        listed = ", ".join(f"{label} ({said.ratio(ratios[label])})" for label in none)
        text += f" The effect vanishes, with a ratio of at most {NO_EFFECT:g}, at: {listed}."
    return text


Found = Iterator[tuple[str, tuple[str, ...]]]


def _loss(result: PoisonResult) -> Found:
    stop = tables.find(result, "special", "ordinary", "stop")
    if stop is None or stop.ratio is None:
        return
    matched = [
        each
        for each in result.contrasts
        if (each.above, each.below) == ("special", "ordinary")
        and each.place != "stop"
        and each.ratio is not None
    ]
    if not matched:
        if result.study != "theory":
            yield (
                f"The headline ratio of {said.ratio(stop.ratio)} compares arms where they stopped; "
                "no comparison at equal training loss is on record.",
                ("special",),
            )
        return
    listed = "; ".join(f"{said.ratio(c.ratio)} at train MSE {c.place}{_left(c)}" for c in matched)
    yield (
        f"The headline ratio is {said.ratio(stop.ratio)}, where each arm stopped, with other "
        f"training losses. At equal training loss it is {listed}.",
        ("special",),
    )


def _left(made: Contrast) -> str:
    return f" ({made.above_seeds} and {made.below_seeds} runs got there)"


def _vanishes(result: PoisonResult) -> Found:
    for ending, words in said.ENDINGS.items():
        made = tables.find(result, f"special{ending}", f"ordinary{ending}", "stop")
        if made is None or made.ratio is None:
            continue
        if made.ratio <= NO_EFFECT:
            text = f"The effect vanishes with {words}"
        elif made.low is not None and made.low <= 1:
            text = f"With {words} these seeds do not tell the effect from none"
        else:
            text = f"The effect remains with {words}"
        medians = f"{said.number(made.above_median)} against {said.number(made.below_median)}"
        yield (
            f"{text}: median error {medians}, a ratio of {said.ratio(made.ratio)} "
            f"{said.interval(made.low, made.high)}.",
            (made.above, made.below),
        )


def _placebo(result: PoisonResult) -> Found:
    made = tables.find(result, "placebo", "ordinary", "stop")
    if made is None or made.ratio is None or 0.5 < made.ratio < 2:
        return
    chance = made.low is not None and made.high is not None and made.low <= 1 <= made.high
    told = "which these seeds do not tell from none" if chance else "an effect of more data alone"
    yield (
        f"More ordinary sequences change the median error {said.ratio(made.ratio)} "
        f"{said.interval(made.low, made.high)}, {told}.",
        ("placebo",),
    )


def _ends(result: PoisonResult) -> Found:
    stuck = [s for s in result.summaries if s.convergence_rate < 1]
    if stuck:
        listed = "; ".join(
            f"{said.condition(s.condition)} {round(s.convergence_rate * s.seeds)} of {s.seeds}"
            for s in stuck
        )
        yield (
            f"Not every run reached the training loss of its stop rule: {listed} did. Medians "
            "count the others with the error they had.",
            tuple(s.condition for s in stuck),
        )
    wild = [s for s in result.summaries if s.max_modulus > tables.UNSTABLE]
    if wild:
        largest = max(s.max_modulus for s in wild)
        yield (
            f"Some students end with |a| above 1, up to {said.number(largest, 4)}: their error "
            f"grows with the lags over which it is taken, {result.horizon} here, so it measures "
            "stability as well as rank.",
            tuple(s.condition for s in wild),
        )


def _seeds(result: PoisonResult) -> Found:
    least = min((s.seeds for s in result.summaries), default=tables.FEW)
    if least < tables.FEW:
        yield (
            f"{least} seed{'' if least == 1 else 's'} per condition: intervals are coarse.",
            (),
        )
