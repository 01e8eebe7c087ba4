"""Where the perturbation grows and shrinks, component by component, against the paper's claim.

Source: qi2024exploring, Figures 3 and 4.
"""

from collections.abc import Iterator, Sequence
from statistics import mean

from robustssm.reporting import feature_figures, looks, names, probes
from robustssm.reporting.base import (
    MISSING,
    Block,
    Cell,
    Figure,
    Fold,
    Paragraph,
    Row,
    RowGroup,
    Table,
)
from robustssm.reporting.cells import Group
from robustssm.reporting.feature_figures import COMPONENTS, METRICS, PROBE, SPLITS, Bars

CLAIMS = {"ssm": 1, "linear": -1, "ads": -1, "attention": -1}
"""Component to the sign of the change that the paper claims: growth or reduction."""
_COMPANIONS = {
    "relative": "Relative shift",
    "cosine": "1 − cosine",
    "cka": "1 − CKA",
}
_CONFIRMED, _NOT, _UNKNOWN = "confirmed", "not confirmed", "cannot tell"


def blocks(groups: Sequence[Group]) -> Iterator[Block]:
    """Figures, their numbers and the claim, if any run was probed.

    Args:
        groups: All cells, in order.
    """
    probed = [g for g in groups if any(probes.found(run, PROBE) for run in g.runs)]
    families = looks.families(groups)
    yield from _claims(probed)
    for number, section in enumerate(dict.fromkeys(group.section for group in probed), 1):
        members = [group for group in probed if group.section == section]
        methods = _methods(members)
        for place, method in enumerate(methods, 1):
            own = [group for group in members if group.method == method]
            for chunk, family in enumerate(families, 1):
                drawn = [group for group in own if group.structure in family.structures]
                if drawn:
                    yield _figure(drawn, family, f"{number}-{place}-{chunk}")
        maps = [group for group in members if feature_figures.shift_map(group)]
        if maps:
            yield _heat(maps, f"{number}")
        yield Fold(
            name=f"shift-{number}-numbers",
            summary=f"The numbers of these figures: {', '.join(section)}",
            blocks=(table(members),),
        )


def judge(values: Sequence[float], sign: int) -> str:
    """Whether changes are of the claimed sign: all, none, or neither.

    Args:
        values: Relative changes, of seeds and splits.
        sign: 1 for growth, -1 for reduction.
    """
    if not values or len(probes.finite(values)) < len(values):
        return _UNKNOWN
    agree = [sign * value > 0 for value in values]
    return _CONFIRMED if all(agree) else _UNKNOWN if any(agree) else _NOT


def claims(groups: Sequence[Group]) -> Table:
    """For every structure and method, whether the changes are those that the paper claims.

    Args:
        groups: Cells with runs that were probed.
    """
    made: dict[str, list[Row]] = {}
    parts = _claimed(groups)
    for group in _ordered(groups):
        changes = {metric: feature_figures.changes([group], metric) for metric in METRICS}
        entries = tuple(
            _verdict(changes[metric], group.structure, part) for part in parts for metric in METRICS
        )
        title = f"{', '.join(group.section)}; {group.method}"
        made.setdefault(title, []).append(Row(head=group.structure, cells=entries))
    columns = [
        (f"{COMPONENTS[part]}: {'growth' if CLAIMS[part] > 0 else 'reduction'}", METRICS[metric])
        for part in parts
        for metric in METRICS
    ]
    return Table(
        caption=(
            "The paper's claim: the shift grows in the SSM, and shrinks in linear layers, AdS and "
            "attention. Relative change across the component, mean over layers. Confirmed: of the "
            "claimed sign on both splits and for every seed; not confirmed: for none of them; "
            "cannot tell: they disagree, or one is not finite. Several seeds: mean and range. "
            "One seed says what one trained model does, not what its structure does."
        ),
        corner="Structure",
        columns=tuple(columns),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
    )


def table(groups: Sequence[Group]) -> Table:
    """The numbers of the bars, and what does not depend on scale beside them.

    Args:
        groups: Cells of one data set and threat.
    """
    made = []
    for group in _ordered(groups):
        changes = {metric: feature_figures.changes([group], metric) for metric in METRICS}
        rows = []
        for part in feature_figures.components(list(changes.values())):
            entries = [
                _change(changes[metric].get((group.structure, part, split), ()))
                for metric in METRICS
                for split in SPLITS
            ]
            entries += [_companion(group, name, part) for name in _COMPANIONS]
            rows.append(Row(head=COMPONENTS.get(part, part), cells=tuple(entries)))
        made.append(RowGroup(rows=tuple(rows), title=f"{group.structure}, {group.method}"))
    heads = [(f"{METRICS[metric]} change", split) for metric in METRICS for split in SPLITS]
    heads += [(name, "test, before → after") for name in _COMPANIONS.values()]
    return Table(
        caption=(
            "Relative change of the shift across each component, mean over layers; several seeds: "
            "mean and range. MSE and KL change when a component merely scales its output; the "
            "columns on the right do not."
        ),
        corner="Component",
        columns=tuple(heads),
        groups=tuple(made),
    )


def _figure(groups: Sequence[Group], family: looks.Family, name: str) -> Figure:
    section, method = groups[0].section, groups[0].method
    return Figure(
        name=f"shift-{name}",
        title=f"Change of the shift across components, {section[0]}, {method}",
        caption=(
            f"{section[0]}, {section[1]}; {method}; the layout of Figure "
            f"{4 if family.scaled else 3} of the paper. Relative change, across each component, "
            "of the distance between clean and adversarial features relative to the clean ones, "
            "averaged over layers. Plain: training examples; hatched: test examples. The axis "
            "is linear to ±100 % and logarithmic beyond where values span decades. No bar: the "
            "structure lacks the component, or the change is not finite. Black lines: range "
            "over several seeds."
        ),
        panels=(feature_figures.bars(groups, family.structures),),
        wide=True,
    )


def _heat(groups: Sequence[Group], name: str) -> Figure:
    section = groups[0].section
    return Figure(
        name=f"shift-map-{name}",
        title=f"Where the shift sits, {section[0]}",
        caption=(
            f"{section[0]}, {section[1]}: normalised shift of the features of test examples by "
            "layer and position; darker is more, on one scale for the whole figure. Several "
            f"seeds: their mean. More than {feature_figures.BINS} positions are averaged in "
            "groups of equal size."
        ),
        panels=(feature_figures.heat(groups, _methods(groups)),),
        wide=True,
    )


def _claims(groups: Sequence[Group]) -> Iterator[Block]:
    parts = _claimed(groups)
    if not parts:
        return
    made = claims(groups)
    texts = []
    for at, (head, metric) in enumerate(made.columns):
        words = [row.cells[at].value for g in made.groups for row in g.rows]
        counts = {word: words.count(word) for word in (_CONFIRMED, _NOT, _UNKNOWN)}
        found = ", ".join(f"{word} {count}" for word, count in counts.items() if count)
        texts.append(f"{head}, by {metric}: {found or 'not measured'}")
    yield Paragraph(text=f"The paper's claim, over structures and methods. {'; '.join(texts)}.")
    yield made


def _verdict(changes: Bars, structure: str, part: str) -> Cell:
    by_split = {split: changes.get((structure, part, split), ()) for split in SPLITS}
    values = [value for seeds in by_split.values() for value in seeds]
    if not values:
        return MISSING
    details = [
        text
        for split, seeds in by_split.items()
        if seeds
        for text in (f"{split} {probes.percent(mean(seeds))}", *_range(seeds))
    ]
    return Cell(value=judge(values, CLAIMS[part]), details=tuple(details))


def _change(seeds: Sequence[float]) -> Cell:
    if not seeds:
        return MISSING
    return Cell(value=probes.percent(mean(seeds)), details=_range(seeds))


def _range(seeds: Sequence[float]) -> tuple[str, ...]:
    """Least and largest of several seeds."""
    ends = [
        probes.percent(end).removesuffix("\N{NO-BREAK SPACE}%") for end in (min(seeds), max(seeds))
    ]
    return (f"[{', '.join(ends)}]",) if len(seeds) > 1 else ()


def _companion(group: Group, name: str, part: str) -> Cell:
    """Mean over layers and seeds before and after the component."""
    ends = []
    for side in ("before", "after"):
        found = [probes.quantity(run, PROBE, f"{name}_{side}") for run in group.runs]
        places = {"split": "test", "component": part}
        values = [v for q in found if q is not None for v in probes.select(q, **places)]
        ends.append(probes.average(values))
    if None in ends:
        return MISSING
    return Cell(value=" → ".join(probes.digits(end, 3) for end in ends if end is not None))


def _claimed(groups: Sequence[Group]) -> list[str]:
    there = feature_figures.components(
        [feature_figures.changes(groups, metric) for metric in METRICS]
    )
    return [part for part in CLAIMS if part in there]


def _methods(groups: Sequence[Group]) -> list[str]:
    return sorted({g.method for g in groups}, key=lambda m: names.rank(names.METHODS, m))


def _ordered(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: names.rank(names.METHODS, group.method))
