"""Signs that an attack failed rather than that the model held (athalye2018obfuscated)."""

import functools
import itertools
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import NormalDist

from jaxtyping import Bool
from torch import Tensor

from robustssm.attacks.base import Attack
from robustssm.core.config import to_dict
from robustssm.evaluation import masking
from robustssm.evaluation.preflight import EXAMPLES, Preflight, preflight
from robustssm.records import Flagged

__all__ = ["EXAMPLES", "Outcome", "Preflight", "preflight", "stage_flags", "warnings"]

SIGMAS = 3.0
"""Differences below this many standard deviations are left to chance."""

BLACK_BOX = frozenset({"square"})
"""Names of attacks that see logits only."""

CHANCE = 0.01
"""Share of what gradient stages leave that a black-box stage may break in an honest model: it was 0
of 327 and of 20 in the reference AutoAttack's run on the network of the tests, and the reference
itself warns at 0.002 of all examples."""

_BUDGET = frozenset({"steps", "restarts"})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attack did."""

    survived: Bool[Tensor, " n"]
    """Right on the clean input, and still right."""
    repaired: int
    """Examples that were wrong on the clean input and right under attack."""
    tried: int
    """Examples that were wrong on the clean input and attacked nevertheless."""
    nan: int
    """Attacked examples whose logits hold a NaN."""


def warnings(
    before: Preflight,
    attacks: Mapping[str, Attack],
    outcomes: Mapping[str, Outcome],
    *,
    clean: int,
    n: int,
    nan: int,
) -> tuple[Flagged, ...]:
    """Every sign that the numbers are not what they seem.

    Args:
        before: What the preflight saw.
        attacks: Label to attack.
        outcomes: Label to what the attack did.
        clean: Examples that are right without attack.
        n: Examples in all.
        nan: Examples whose clean logits hold a NaN.

    Returns:
        Flags; severity "invalid" where the number must not be believed.
    """
    flags = [
        *masking.flags(before),
        *_nan_flags(nan, outcomes, n),
        *_repair_flags(outcomes, clean, n),
        *_order_flags(attacks, outcomes),
        *_black_box_flags(attacks, outcomes),
    ]
    return tuple(flags)


def stage_flags(
    stages: Mapping[str, tuple[bool, ...]], black_box: Collection[str]
) -> tuple[Flagged, ...]:
    """A black-box stage of a suite that breaks more than gradient stages before it may have left.

    Were the gradients right, little would be left to find for a search that sees less. Raised if
    it breaks at least two, and so many that no honest 1 % (`CHANCE`) explains them: the chance of
    that many or more, binomial, is below that of three standard deviations (0.00135).

    Args:
        stages: Stage, in order, to: right on the clean input and fooled by no stage so far. A row
            called "clean" may come first.
        black_box: Those of them that see logits only.

    Returns:
        At most one flag per stage; "invalid" if it broke a tenth or more of what reached it.
    """
    flags, climbed = [], False
    for (first, before), (name, after) in itertools.pairwise(stages.items()):
        climbed = climbed or (first not in black_box and first != "clean")
        reached, broken = sum(before), sum(before) - sum(after)
        if name in black_box and climbed and beyond_chance(broken, reached):
            severity = "invalid" if broken >= 0.1 * reached else "warning"
            text = (
                f"The black-box stage '{name}' breaks {broken} of the {reached} examples that the "
                "gradient attacks before it left. Gradients mislead, so the true robustness is "
                "lower still: climb the margin, raise `queries`, attack by transfer."
            )
            flags.append(Flagged(name="black_box_wins", message=text, severity=severity))
    return tuple(flags)


def clearly_more(more: int, less: int) -> bool:
    """Whether one of two counts of discordant examples is the larger beyond chance (a sign test).

    Source: mcnemar1947note.
    """
    return more - less > SIGMAS * math.sqrt(more + less)


def beyond_chance(broken: int, reached: int) -> bool:
    """Whether more is broken than an honest share (`CHANCE`) explains; see `stage_flags`."""
    if broken < 2:
        return False
    p = CHANCE
    below = (math.comb(reached, k) * p**k * (1 - p) ** (reached - k) for k in range(broken))
    return 1 - math.fsum(below) < 1 - NormalDist().cdf(SIGMAS)


def _nan_flags(clean: int, outcomes: Mapping[str, Outcome], n: int) -> list[Flagged]:
    under_attack = {label: o.nan for label, o in outcomes.items() if o.nan}
    if not clean and not under_attack:
        return []
    text = (
        f"Logits hold a NaN on {clean} of {n} clean examples and, under attack, on "
        f"{under_attack or 'none'}; these count as wrong. Find the overflow before comparing "
        "models."
    )
    return [Flagged(name="nan_logits", message=text, severity="invalid" if clean else "warning")]


def _repair_flags(outcomes: Mapping[str, Outcome], clean: int, n: int) -> list[Flagged]:
    """Accuracy under attack above clean accuracy, over all examples: those repaired outweigh those
    fooled.

    A working attack leaves what is wrong already as it is. How many wrong examples would come out
    right is estimated from those tried; the difference must be beyond chance.
    """
    flags = []
    for label, outcome in outcomes.items():
        if not outcome.tried:
            continue
        scale = (n - clean) / outcome.tried
        repaired, survived = scale * outcome.repaired, int(outcome.survived.sum())
        fooled = clean - survived
        if repaired - fooled > SIGMAS * math.sqrt(scale * repaired + fooled):
            text = (
                f"Under '{label}' the model is right on {(survived + repaired) / n:.1%} of all "
                f"examples, without attack on {clean / n:.1%}: the attack repairs "
                f"{outcome.repaired} of {outcome.tried} clean errors. It climbs in the wrong "
                "place, or the model reads the label from the perturbation. Neither number is a "
                "robustness; attack with loss='kl', which hides the label, and by black box."
            )
            flags.append(Flagged(name="accuracy_rises", message=text, severity="invalid"))
    return flags


def _order_flags(attacks: Mapping[str, Attack], outcomes: Mapping[str, Outcome]) -> list[Flagged]:
    """A larger search that finds clearly less: discordant examples, by a sign test."""
    flags = []
    for (weak, weaker), (strong, stronger) in itertools.permutations(attacks.items(), 2):
        if not _contains(stronger, weaker):
            continue
        held, fell = outcomes[strong].survived, outcomes[weak].survived
        missed, gained = int((held & ~fell).sum()), int((fell & ~held).sum())
        if clearly_more(missed, gained):
            text = (
                f"'{strong}' is the larger search, but '{weak}' fools {missed} examples that it "
                f"misses, and misses {gained}. Gradients mislead, or the step is too long: try a "
                "smaller step_size, loss='margin', more restarts."
            )
            flags.append(Flagged(name="stronger_is_weaker", message=text))
    return flags


def _black_box_flags(
    attacks: Mapping[str, Attack], outcomes: Mapping[str, Outcome]
) -> list[Flagged]:
    """A search that sees logits only and finds clearly more than all gradient attacks together.

    Single steps are no rival: a long search may well beat them in an honest model.
    """
    climbing = [
        outcomes[label].survived
        for label, attack in attacks.items()
        if attack.name not in BLACK_BOX and attack.name != "fgsm"
    ]
    if not climbing:
        return []
    held = functools.reduce(operator.and_, climbing)
    flags = []
    for label, attack in attacks.items():
        fell = ~outcomes[label].survived
        more, less = int((held & fell).sum()), int((~held & ~fell).sum())
        if attack.name in BLACK_BOX and clearly_more(more, less):
            text = (
                f"'{label}', which sees no gradient, fools {more} examples that the gradient "
                f"attacks miss, and misses {less}. Gradients mislead, or those attacks are too "
                "weak (few steps): run them longer, on the margin, and attack by transfer."
            )
            flags.append(Flagged(name="black_box_wins", message=text, severity="invalid"))
    return flags


def _contains(stronger: Attack, weaker: Attack) -> bool:
    """Whether one attack is the other with more steps or runs, or a PGD that reaches past FGSM."""
    low, high = to_dict(weaker), to_dict(stronger)
    if (weaker.name, stronger.name) == ("fgsm", "pgd"):
        across = (
            2 if high["start"] == "uniform" else 1
        )  # from the far side of the ball, or its centre
        return high["steps"] > 1 and high["steps"] * high["step_size"] >= across
    if type(weaker) is not type(stronger):
        return False
    different = {key for key in low if low[key] != high[key]}
    return bool(different) and different <= _BUDGET and all(high[k] > low[k] for k in different)
