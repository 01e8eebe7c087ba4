"""What the released code does otherwise than the paper says, cell by cell; and one bug at a time.

A tier of recipes whose name ends in "_released" is compared with the same one ending in "_paper",
or else without an ending; single bugs are cells of the paper's tier with settings changed.
"""

from collections.abc import Iterator, Sequence

from robustssm.reporting import variants
from robustssm.reporting.base import Block, Paragraph
from robustssm.reporting.cells import Group
from robustssm.reporting.comparable import apart
from robustssm.reporting.evidence import Tier, by_recipe, cell, tiers
from robustssm.reporting.notes import Marks
from robustssm.reporting.pair_tables import Pair, pair_table

_RELEASED = "_released"
_IDLE = {"seed", "log_every", "keep_every", "evaluation_batch_size"}
_REMARK = (
    "Released PGD-10 takes its gradients elsewhere and overstates robustness; believe PGD-10 and "
    "AutoAttack."
)


def blocks(groups: Sequence[Group], *, marks: Marks, level: float) -> Iterator[Block]:
    """The two tables, as far as there are runs for them.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    found = tiers(groups)
    released, bugs = list(both(found)), list(single(found))
    if released or bugs:
        yield Paragraph(
            text=(
                "The released code of qi2024exploring differs from the paper's text: its PGD takes "
                "gradients up to 2 ε away, the GELUs of its blocks are missing, AdS shifts as well "
                "as scales, colour images are read in another order, and free training and YOPO "
                "are other methods. Both are trained and evaluated here on the same data."
            )
        )
    kinds = (
        (released, "as released", "Cell", "as released"),
        (bugs, "with this", "Cell, and what is changed", "with one thing changed"),
    )
    for pairs, second, corner, words in kinds:
        if pairs:
            yield pair_table(
                pairs,
                heads=("as in the paper", second),
                corner=corner,
                what=f"The same cells as in the paper and {words}",
                marks=marks,
                level=level,
                remark=_REMARK,
            )


def both(found: Sequence[Tier]) -> Iterator[Pair]:
    """Cells measured in both tiers.

    Args:
        found: Tiers of cells.
    """
    for tier in found:
        if not tier.tier.endswith(_RELEASED):
            continue
        stem = tier.tier.removesuffix(_RELEASED)
        others = {t.tier: t for t in found if t.section == tier.section}
        other = others.get(f"{stem}_paper") or others.get(stem)
        cells_of = by_recipe(other) if other else {}
        for name, after in by_recipe(tier).items():
            before = cells_of.get(name)
            if before is not None:
                label = f"{before.runs[0].structure}, {before.method}"
                yield Pair(section=tier.section, label=label, before=before, after=after)


def single(found: Sequence[Tier]) -> Iterator[Pair]:
    """Cells of a tier of the paper's text with settings changed, beside those without.

    Args:
        found: Tiers of cells.
    """
    for tier in found:
        if not tier.tier.endswith("_paper"):
            continue
        bases = by_recipe(tier)
        for after in (*tier.base, *tier.variants):
            before = bases[cell(after)]
            if after is not before:
                what = f"{before.runs[0].structure}, {before.method}: {changed(before, after)}"
                yield Pair(section=tier.section, label=what, before=before, after=after)


def changed(before: Group, after: Group) -> str:
    """What tells two cells of one recipe apart: the label of a grid, or the settings."""
    label = variants.label(after.runs)
    if label:
        return label
    settings = [
        {k: v for k, v in group.runs[0].experiment.items() if k not in _IDLE}
        for group in (before, after)
    ]
    said = [f"{path} = {new}" for path, _, new in apart(settings[0], settings[1])]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")
