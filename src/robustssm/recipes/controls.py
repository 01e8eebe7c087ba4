"""Which controls there are, what each isolates, and which tiers have them. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """A model that stands beside the structures of the tables to tell what makes a difference."""

    about: str
    """One line."""
    beside: str
    """The structure of the tables that it is compared with."""
    tiers: tuple[str, ...] = ("digits", "mnist14", "mnist", "cifar10")


CONTROLS: Mapping[str, Control] = {
    "s4_wide": Control("as many parameters as S4 + AdS, by width alone", "s4_ads_relu"),
    "dss_wide": Control("as many parameters as DSS + AdS, by width alone", "dss_ads_relu"),
    "s4_affine": Control("no elementwise nonlinearity: affine between norms", "s4"),
    "s4_affine_ads": Control("AdS-ReLU as the only nonlinearity", "s4_affine"),
    "s4_gelu": Control(
        "one GELU as the only nonlinearity (in the other tiers that is s4)",
        "s4_affine_ads",
        ("mnist", "cifar10"),
    ),
    "s4_glu": Control("a GLU as the only nonlinearity", "s4_affine_ads"),
    "s4_ads_shift": Control("y + relu(V y) for relu(W y) * y", "s4_ads_relu"),
    "s4_ads_both": Control("relu(W y) * y + relu(V y)", "s4_ads_relu"),
    "s4_ads_frozen": Control("AdS-ReLU with W as drawn, not trained", "s4_ads_relu"),
    "s4_ads_identity": Control("AdS-ReLU that starts as the identity", "s4_ads_relu"),
    "s4_bidirectional": Control("S4 in both directions, added up", "mega"),
    "attention": Control("softmax attention in the block of S4, no state", "mega"),
    "ema": Control("Mega's moving average in the block of S4", "mega"),
    "transformer": Control("pre-norm Transformer, near S4 + AdS in parameters", "s4_ads_relu"),
    "cnn": Control("2-D convolutions, near S4 + AdS in parameters", "s4_ads_relu"),
}
"""Structure in the names of recipes, as in `digits.s4_wide_pgd`, to what it is."""
