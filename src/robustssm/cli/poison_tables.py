"""What the verbs of the poisoning laboratory print."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustssm.records.poisoning import PoisonResult


def result_table(result: PoisonResult) -> Group:
    """One line per condition or point of a sweep, then comparisons, then remarks."""
    tables = [_sweep(result)] if result.sweep else [_conditions(result), _contrasts(result)]
    remarks = Text(" ".join((f"{result.interval}.", *result.remarks)), style="italic")
    return Group(*tables, remarks)


def _conditions(result: PoisonResult) -> Table:
    seeds = max((each.seeds for each in result.summaries), default=0)
    table = Table(
        title=f"{result.study}, length {result.length}, {seeds} seeds: error at length "
        f"{result.horizon}"
    )
    for head in ("condition", "done", "loss", "median", "interval", "rank"):
        table.add_column(head, no_wrap=True)
    for each in result.summaries:
        table.add_row(
            each.condition.replace("_", " "),
            f"{each.convergence_rate:.0%}",
            f"{each.train_mse:.2g}",
            f"{each.median:.3g}",
            f"{each.low:.3g} {each.high:.3g}",
            f"{each.effective_rank:.2f}",
        )
    return table


def _contrasts(result: PoisonResult) -> Table:
    table = Table("comparison", "read at", "ratio of medians")
    for each in result.contrasts:
        place = "the stop" if each.place == "stop" else f"train MSE {each.place}"
        ratio = "no run got there"
        if each.ratio is not None:
            interval = "" if each.low is None else f" [{each.low:.3g}, {each.high:.3g}]"
            ratio = f"{each.ratio:.3g}{interval}"
        names = (name.replace("_", " ") for name in (each.above, each.below))
        table.add_row(" / ".join(names), place, ratio)
    return table


def _sweep(result: PoisonResult) -> Table:
    table = Table(
        "value", "condition", "median error", "worst train MSE", "rank", title=result.study
    )
    for row in result.sweep:
        interval = f"{row.median:.3g} [{row.low:.3g}, {row.high:.3g}]"
        table.add_row(
            row.label,
            row.condition,
            interval,
            f"{row.worst_train_mse:.2g}",
            f"{row.effective_rank:.2f}",
        )
    return table
