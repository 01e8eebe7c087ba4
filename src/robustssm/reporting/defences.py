"""What detectors and defences are worth against the published poison and adaptive attackers."""

import math
from collections.abc import Iterator, Sequence

from robustssm.records.audit import AlarmRow, DefenceResult, DefenceRow, DetectorRow
from robustssm.reporting import detection_figures as drawn
from robustssm.reporting import poison_names as said
from robustssm.reporting.base import MISSING, Block, Cell, Figure, Paragraph, Row, RowGroup, Table

HOLDS = 2.0
"""A defence holds where the error stays under so many times that of clean training."""


def blocks(results: Sequence[tuple[str, DefenceResult]]) -> Iterator[Block]:
    """Everything on detectors and defences.

    Args:
        results: Names of files, and what they hold.
    """
    for place, (_, result) in enumerate(results, 1):
        for verdict in result.verdicts:
            yield Paragraph(text=verdict)
        settings = dict.fromkeys(row.setting for row in (*result.defences, *result.detectors))
        for number, setting in enumerate(settings, 1):
            name = f"{place}-{number}"
            yield from _defences(result, setting, name)
            yield from _detectors(result, setting, name)
        if result.alarms:
            yield _alarms(result.alarms)
        if result.remarks:
            yield Paragraph(text=" ".join(result.remarks))


def _defences(result: DefenceResult, setting: str, name: str) -> Iterator[Block]:
    rows = [row for row in result.defences if row.setting == setting]
    if not rows:
        return
    attacks, names = _attacks(rows), list(dict.fromkeys(row.defence for row in rows))
    made = {(row.defence, row.attack): row for row in rows}
    asking = {row.defence for row in rows if row.asks_teacher}
    yield Table(
        caption=(
            f"Defences, {_setting(setting)}: median generalisation error with its interval, and "
            "its ratio to that of plain training on clean sequences. Checked cells stay under "
            f"{HOLDS:g} times."
        ),
        corner="Defence",
        columns=tuple((drawn.ATTACKS.get(attack, attack),) for attack in attacks),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(
                        head=f"{defence} *" if defence in asking else defence,
                        cells=tuple(_error(made.get((defence, attack))) for attack in attacks),
                    )
                    for defence in names
                )
            ),
        ),
        notes=(f"Intervals: {result.interval}.",)
        + (("* needs labels that the training set does not have.",) if asking else ()),
    )
    clean = [row.error / row.ratio for row in rows if 0 < row.ratio < math.inf]
    yield Figure(
        name=f"defences-{name}",
        title=f"Generalisation error under each defence, {_setting(setting)}",
        caption=(
            f"Defences, {_setting(setting)}: generalisation error by defence and attacker; a dot "
            "per seed, medians with their intervals. Left of the dashed line a defence holds."
        ),
        panels=(
            drawn.effects(
                names,
                {
                    attack: {row.defence: _spread(row) for row in rows if row.attack == attack}
                    for attack in attacks
                },
                title="Error by defence and attacker",
                reference=HOLDS * clean[0] if clean else None,
            ),
        ),
        wide=True,
    )


def _detectors(result: DefenceResult, setting: str, name: str) -> Iterator[Block]:
    rows = [row for row in result.detectors if row.setting == setting]
    if not rows:
        return
    attacks, names = _attacks(rows), list(dict.fromkeys(row.detector for row in rows))
    made = {(row.detector, row.attack): row for row in rows}
    heads = [
        (drawn.ATTACKS.get(attack, attack), head) for attack in attacks for head in _heads(attack)
    ]
    yield Table(
        caption=(
            f"Detectors, {_setting(setting)}: AUROC with its interval; false positives where 95 % "
            "of the poison is found; clean sequences beyond the fixed z; and the median error "
            "after filtering, with its ratio to plain training on clean sequences."
        ),
        corner="Detector",
        columns=tuple(heads),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(
                        head=detector,
                        cells=tuple(
                            cell
                            for attack in attacks
                            for cell in _scores(made.get((detector, attack)), attack)
                        ),
                    )
                    for detector in names
                )
            ),
        ),
    )
    panels = [
        drawn.roc(
            drawn.ATTACKS.get(attack, attack),
            [
                drawn.Roc(
                    name=row.detector,
                    false_positives=tuple(point[0] for point in row.roc),
                    recall=tuple(point[1] for point in row.roc),
                )
                for row in rows
                if row.attack == attack and row.roc
            ],
            names,
        )
        for attack in attacks
        if any(row.roc for row in rows if row.attack == attack)
    ]
    if panels:
        yield Figure(
            name=f"roc-{name}",
            title=f"ROC of the detectors, {_setting(setting)}",
            caption=(
                f"Detectors, {_setting(setting)}: recall over false positives, averaged over "
                "seeds, by attacker. The diagonal is chance."
            ),
            panels=tuple(panels),
        )


def _alarms(alarms: Sequence[AlarmRow]) -> Table:
    rows = tuple(
        Row(
            head=f"{each.alarm}, {drawn.ATTACKS.get(each.attack, each.attack)}",
            cells=(
                Cell(value=f"{each.auroc:.3f}"),
                Cell(value=_percent(each.fpr_at_95)),
                Cell(value=said.number(each.clean)),
                Cell(value=said.number(each.poisoned)),
            ),
        )
        for each in alarms
    )
    groups: dict[str, list[Row]] = {}
    for each, row in zip(alarms, rows, strict=True):
        groups.setdefault(each.setting, []).append(row)
    return Table(
        caption=(
            "Alarms on trained students: whether one number tells poisoned students from clean "
            "ones, over seeds."
        ),
        corner="Alarm, attacker",
        columns=(
            ("AUROC",),
            ("FPR at 95 %",),
            ("clean, median",),
            ("poisoned, median",),
        ),
        groups=tuple(
            RowGroup(title=_setting(name).capitalize(), rows=tuple(found))
            for name, found in groups.items()
        ),
    )


def _attacks(rows: Sequence[DefenceRow] | Sequence[DetectorRow]) -> list[str]:
    return list(dict.fromkeys(row.attack for row in rows))


def _heads(attack: str) -> tuple[str, ...]:
    if attack == "none":
        return ("flagged", "error filtered")
    return ("AUROC", "FPR at 95 %", "error filtered")


def _scores(row: DetectorRow | None, attack: str) -> Iterator[Cell]:
    if row is None:
        yield from (MISSING for _ in _heads(attack))
        return
    if attack == "none":
        yield Cell(value=_percent(row.flagged_clean))
    else:
        ends = ()
        if row.auroc_low is not None and row.auroc_high is not None:
            ends = (f"[{row.auroc_low:.3f}, {row.auroc_high:.3f}]",)
        yield MISSING if row.auroc is None else Cell(value=f"{row.auroc:.3f}", details=ends)
        yield MISSING if row.fpr_at_95 is None else Cell(value=_percent(row.fpr_at_95))
    yield Cell(value=said.number(row.error), details=(f"{_ratio(row.ratio)} clean",))


def _error(row: DefenceRow | None) -> Cell:
    if row is None:
        return MISSING
    details = [f"{_ratio(row.ratio)} clean", said.interval(row.error_low, row.error_high)]
    if row.converged < 1:
        details.append(f"{row.converged:.0%} converged")
    mark = " \N{CHECK MARK}" if row.ratio < HOLDS else ""
    return Cell(value=f"{said.number(row.error)}{mark}", details=tuple(details))


def _spread(row: DefenceRow) -> drawn.Spread:
    return drawn.Spread(errors=row.errors, median=row.error, low=row.error_low, high=row.error_high)


def _setting(name: str) -> str:
    first, _, rest = name.partition(",")
    words = {"theory": "the setting of Theorem 1", "beyond": "beyond the theorem"}
    return words.get(first, first) + (f",{rest}" if rest else "")


def _ratio(value: float) -> str:
    return said.ratio(value)


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")
