"""What controls say: cells that change one thing, beside the cell that has it. docs/controls.md."""

from collections.abc import Iterator, Sequence

from robustssm.reporting.base import Block, Paragraph
from robustssm.reporting.cells import Group
from robustssm.reporting.evidence import Tier, by_recipe, tiers
from robustssm.reporting.notes import Marks
from robustssm.reporting.pair_tables import Pair, pair_table

CONTROLS = (
    ("s4_wide", "s4_ads_relu", "parameters instead of AdS"),
    ("dss_wide", "dss_ads_relu", "parameters instead of AdS"),
    ("s4_affine", "s4", "no nonlinearity"),
    ("s4_affine_ads", "s4_affine", "AdS as the only nonlinearity"),
    ("s4_gelu", "s4_affine_ads", "GELU instead of AdS"),
    ("s4", "s4_affine_ads", "GELU instead of AdS"),
    ("s4_glu", "s4_affine_ads", "GLU instead of AdS"),
    ("s4_ads_shift", "s4_ads_relu", "a sum instead of the product"),
    ("s4_ads_both", "s4_ads_relu", "a sum beside the product"),
    ("s4_ads_frozen", "s4_ads_relu", "weights of AdS as drawn"),
    ("s4_ads_identity", "s4_ads_relu", "AdS begins as the identity"),
    ("s4_bidirectional", "s4", "both directions"),
    ("attention", "mega", "attention alone"),
    ("ema", "mega", "averages alone"),
    ("transformer", "s4_ads_relu", "a Transformer"),
    ("cnn", "s4_ads_relu", "a convolutional network"),
)
"""A control, the cell it is compared with, and what is different; recipes without tier and method.

Where no `s4_gelu` was run `s4` stands for it, with one GELU in small tiers and two in the others.
"""


def blocks(groups: Sequence[Group], *, marks: Marks, level: float) -> Iterator[Block]:
    """The table, if any control was run beside the cell it belongs to.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    found = list(pairs(tiers(groups)))
    if not found:
        return
    yield Paragraph(
        text=(
            "The comparisons of the paper change several things at once. Each control changes one "
            "of them, on the same data with the same training. The differences are not corrected "
            "for their number: of twenty, one interval of 95 % misses its value by chance."
        )
    )
    yield pair_table(
        found,
        heads=("compared with", "control"),
        corner="What is different",
        what="Controls, and the cells that they are compared with",
        marks=marks,
        level=level,
    )


def pairs(found: Sequence[Tier]) -> Iterator[Pair]:
    """Controls beside what they are compared with, method by method.

    Args:
        found: Tiers of cells.
    """
    for tier in found:
        recipes = by_recipe(tier)
        for control, plain, what in CONTROLS:
            if control == "s4" and any(name.startswith("s4_gelu_") for name in recipes):
                continue
            for name, after in recipes.items():
                stem, _, method = name.rpartition("_")
                before = recipes.get(f"{plain}_{method}")
                if stem == control and before is not None:
                    first, second = (group.runs[0].structure for group in (before, after))
                    label = f"{what}: {first} \N{RIGHTWARDS ARROW} {second}, {after.method}"
                    yield Pair(section=tier.section, label=label, before=before, after=after)
