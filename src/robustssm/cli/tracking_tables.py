"""Listings and comparisons as tables of the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustssm.cli.options import out
from robustssm.reporting import names
from robustssm.reporting.cells import CLEAN, WORST, probability, signed
from robustssm.reporting.contrast import SEEDS, Contrast, Line, OverSeeds, over_seeds
from robustssm.reporting.listing import Accuracies, Listed

_WIDE = 1000
"""Columns where nobody looks at a terminal, so that a run is one line of a file or pipe."""
_OVERRIDES = 4
"""Overrides shown of a run."""
_STYLES = {
    "reliable": "green",
    "suspicious": "yellow",
    "unreliable": "red",
    "damaged": "red",
    "interrupted": "yellow",
}
"""Of words that say it too: colour alone says nothing."""


def show(what: RenderableType) -> None:
    """Prints; without folding lines if it goes to no terminal."""
    console = out if out.is_terminal else Console(file=out.file, width=_WIDE)
    console.print(what, highlight=False)


def listing_table(found: Sequence[Listed], *, last: bool) -> Group:
    """A line per run; below, why damaged ones are.

    Args:
        found: What to list, in order.
        last: Whether the last checkpoint's accuracies are shown too.
    """
    more = ("clean, last", "robust, last") if last else ()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("run", "recipe", "overrides", "status", "seed"):
        table.add_column(head, overflow="fold", justify="right" if head == "seed" else "left")
    for head in ("clean", "robust", *more):
        table.add_column(head, justify="right")
    for head in ("verdict", "time", "started"):
        table.add_column(head, justify="right" if head == "time" else "left", overflow="fold")
    for run in found:
        table.add_row(
            Text(run.name),
            Text(run.recipe),
            Text(_short(run.overrides)),
            Text(run.progress, style=_STYLES.get(run.status, "")),
            "" if run.seed is None else str(run.seed),
            *_accuracies(run.best),
            *(_accuracies(run.last) if last else ()),
            Text(run.verdict, style=_STYLES.get(run.verdict, "")),
            "" if run.seconds is None else duration(run.seconds),
            run.started[:16].replace("T", " "),
        )
    damaged = [Text(f"{run.name}: {run.reason}") for run in found if run.reason]
    caption = Text("accuracy in percent, best checkpoint; robust: worst case over all attacks")
    caption.stylize("dim")
    return Group(table, *damaged, caption)


def contrast_tables(family: Sequence[Contrast]) -> Iterator[RenderableType]:
    """Settings that differ, every pair's accuracies, and the mean over seeds.

    Args:
        family: Comparisons of runs that differ in their seed alone on either side; at least one.
    """
    first = family[0]
    yield Text(f"A: {_names(family, 'first')}\nB: {_names(family, 'second')}")
    if first.settings:
        settings = Table("setting", "A", "B")
        for row in first.settings:
            settings.add_row(*(Text(word) for word in row))
        yield Text("Settings that differ")
        yield settings
    else:
        yield Text("The settings are the same.")
    for each in family:
        seed = f", seed {each.first.seed}" if len(family) > 1 else ""
        yield Text(f"{each.checkpoint} checkpoints{seed}, n = {each.lines[0].n}")
        yield _pair(each)
    yield Text(_meaning(first), style="dim")
    if len(family) > 1:
        yield Text(f"Mean difference over {len(family)} seeds")
        yield _seeds(family)
        yield Text(_meaning_over_seeds(len(family)), style="dim")
    for remark in dict.fromkeys(remark for each in family for remark in each.remarks):
        yield Text(remark)


def duration(seconds: float) -> str:
    """Time in two units at most: "42 s", "3 min 05 s", "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _pair(each: Contrast) -> Table:
    table = Table("accuracy, %")
    tested = len(each.lines) > 1
    heads = ("A", "B", "A - B, points", "only A right", "only B right", "p")
    for head in (*heads, *(("p (Holm)",) if tested else ())):
        table.add_column(head, justify="right")
    for line in each.lines:
        table.add_row(Text(metric(line.metric)), *_line(line, tested))
    return table


def _meaning(each: Contrast) -> str:
    tested = len(each.lines)
    several = f"; p (Holm): corrected for the {tested} accuracies of one pair of runs"
    return (
        f"{each.level:.0%} paired intervals over test examples; p: McNemar's exact test, two-sided"
        + (several if tested > 1 else "")
        + ". Each pair is two trained models of one seed: other seeds may turn it round."
    )


def _line(line: Line, corrected: bool) -> Iterator[str]:
    low, high = line.interval
    yield f"{100 * line.first:.1f}"
    yield f"{100 * line.second:.1f}"
    yield f"{signed(100 * line.difference)} [{signed(100 * low)}, {signed(100 * high)}]"
    yield str(line.only_first)
    yield str(line.only_second)
    for p in (line.p, line.p_holm) if corrected else (line.p,):
        yield probability(p).removeprefix("p ").removeprefix("= ")


def _seeds(family: Sequence[Contrast]) -> Table:
    table = Table("accuracy, %")
    for head in ("A - B, points", "spread", "interval"):
        table.add_column(head, justify="right")
    for each in over_seeds(family):
        spread = "-" if each.spread is None else f"{100 * each.spread:.1f}"
        mean = signed(100 * each.mean)
        table.add_row(Text(metric(each.metric)), mean, spread, _interval(each))
    return table


def _meaning_over_seeds(count: int) -> str:
    spread = "spread: standard deviation over seeds; "
    if count < SEEDS:
        return f"{spread}no interval over seeds: {count} are too few, {SEEDS} are needed"
    return f"{spread}interval: 95 %, Student's, over seeds"


def _interval(each: OverSeeds) -> str:
    if each.interval is None:
        return "-"
    return "[" + ", ".join(signed(100 * end) for end in each.interval) + "]"


def metric(label: str) -> str:
    """An accuracy as tables call it."""
    return label if label in (CLEAN, WORST) else names.attack(label)


def _short(overrides: Mapping[str, str]) -> str:
    """The last word of each name where that is enough, and not too many; `--json` has them all."""
    names = [name for name in overrides if name != "seed"]
    last = [name.rpartition(".")[2] for name in names]
    parts = [
        f"{word if last.count(word) == 1 else name}={overrides[name]}"
        for name, word in zip(names, last, strict=True)
    ]
    more = len(parts) - _OVERRIDES
    return " ".join(parts[:_OVERRIDES] + ([f"+{more}"] if more > 0 else []))


def _names(family: Sequence[Contrast], side: str) -> str:
    chosen = [getattr(each, side) for each in family]
    recipes = ", ".join(dict.fromkeys(run.recipe for run in chosen))
    return f"{', '.join(run.name for run in chosen)} ({recipes})"


def _accuracies(found: Accuracies | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return f"{100 * found.clean:.1f}", "-" if found.robust is None else f"{100 * found.robust:.1f}"
