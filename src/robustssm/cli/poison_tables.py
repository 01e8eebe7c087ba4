"""What the verbs of the poisoning laboratory print."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
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


def defence_table(result: DefenceResult) -> Group:
    """Detectors by attacker, defences by attacker, and what follows."""
    detectors = Table("setting", "attacker", "detector", "AUROC", "FPR at 95 %", "error / clean")
    for row in result.detectors:
        cells = ("-" if v is None else f"{v:.2f}" for v in (row.auroc, row.fpr_at_95))
        detectors.add_row(row.setting, row.attack, row.detector, *cells, f"{row.ratio:.2g}")
    defences = Table("setting", "attacker", "defence", "median error", "error / clean")
    for row in result.defences:
        error = f"{row.error:.3g} [{row.error_low:.3g}, {row.error_high:.3g}]"
        defences.add_row(row.setting, row.attack, row.defence, error, f"{row.ratio:.2g}")
    said = Text(" ".join((*result.verdicts, *result.remarks)), style="italic")
    return Group(detectors, defences, said)


def brewing_table(result: BrewingResult) -> Group:
    """Arms, means over seeds; then the poisoned arm against every control, in pairs."""
    arms = Table("arm", "accuracy, %", "on targets, %", "train loss", "tail energy")
    for name in dict.fromkeys(each.arm for each in result.arms):
        rows = result.of(name)
        tails = [row.tail_energy for row in rows if row.tail_energy is not None]
        arms.add_row(
            name,
            f"{100 * _mean([row.accuracy for row in rows]):.1f}",
            f"{100 * _mean([row.target_accuracy for row in rows]):.1f}",
            f"{_mean([row.train_loss for row in rows]):.2g}",
            f"{_mean(tails):.2f}" if tails else "-",
        )
    pairs = Table("poisoned minus", "measure", "mean", "95 % interval over seeds")
    for each in result.differences:
        interval = "one seed" if each.low is None else f"[{each.low:+.3g}, {each.high:+.3g}]"
        pairs.add_row(each.control, each.measure.replace("_", " "), f"{each.mean:+.3g}", interval)
    return Group(arms, pairs, Text(" ".join(result.remarks), style="italic"))


def audit_table(result: AuditResult, *, most: int = 20) -> Group:
    """The most suspicious sequences and the lags that few of them reach."""
    head = f"{result.flagged} of {result.sequences} sequences are suspicious ({result.source})"
    found = Table("row", "z", "of its end", "of an entry", "lags", "share as bad", title=head)
    for each in result.findings[:most]:
        lags = ", ".join(str(lag) for lag in each.lags[:6])
        numbers = (f"{z:.3g}" for z in (each.score, each.tail_z, each.lag_z))
        found.add_row(str(each.index), *numbers, lags, f"{each.share:.2g}")
    rare = [str(each.lag) for each in result.lags if each.flagged]
    lines = [f"Lags that few sequences reach: {', '.join(rare)}."] if rare else []
    return Group(found, Text(" ".join((*lines, *result.remarks)), style="italic"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
