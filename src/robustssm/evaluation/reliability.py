"""Signs that an attack failed rather than that the model held (athalye2018obfuscated)."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.base import Attack
from robustssm.core.config import to_dict
from robustssm.core.types import LogitsFn
from robustssm.ops import divergence
from robustssm.records import Flagged

EXAMPLES = 256
"""How many examples the preflight looks at."""

SIGMAS = 3.0
"""Differences below this many standard deviations are left to chance."""

_BUDGET = frozenset({"steps", "restarts"})


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a model does on a few clean examples, before any attack."""

    examined: int
    differentiable: bool
    zero_gradients: int
    """Examples whose input gradient of the cross-entropy is exactly zero."""
    non_finite_gradients: int
    tolerance: float
    """Differences up to this, relative to the largest logit, are rounding."""
    randomness: float
    """Largest difference between two passes over the same inputs; relative, as those below."""
    batch_dependence: float
    """Largest difference between an example's logits in its batch and in half of it."""
    gradient_path: float
    """Largest difference between logits computed with and without gradients enabled."""
    probabilities: bool
    """Whether the "logits" are rows of probabilities."""


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


def preflight(
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    batch_size: int,
) -> Preflight:
    """Looks at the logits and input gradients of a few examples.

    Args:
        model: In eval mode.
        x: Clean inputs (batch, ...).
        y: Their classes (batch,).
        batch_size: Examples at a time; what needs no gradient is looked at on the first batch.
    """
    zero = non_finite = 0
    differentiable = True
    for some, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        gradient = _input_gradient(model, some, labels)
        if gradient is None:
            differentiable = False
            break
        rows = gradient.reshape(len(some), -1)
        zero += int((rows == 0).all(1).sum())
        non_finite += int((~rows.isfinite()).any(1).sum())
    first = x[:batch_size]
    half = first[: (len(first) + 1) // 2]  # not one alone, which train mode itself would refuse
    with torch.inference_mode(False), torch.enable_grad():
        climbed = model(first.detach().clone().requires_grad_()).detach()
    with torch.no_grad():
        logits, again, among = model(first), model(first), model(half)
    return Preflight(
        examined=len(x),
        differentiable=differentiable,
        zero_gradients=zero,
        non_finite_gradients=non_finite,
        tolerance=max(1e-3, 8 * torch.finfo(logits.dtype).eps),
        randomness=_gap(logits, again),
        batch_dependence=_gap(logits[: len(half)], among),
        gradient_path=_gap(logits, climbed),
        probabilities=bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all()),
    )


def _input_gradient(model: LogitsFn, x: Tensor, y: Tensor) -> Tensor | None:
    with torch.inference_mode(False), torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        logits = model(points)
        if not logits.requires_grad:
            return None
        loss = divergence.cross_entropy(logits, y.clone()).sum()
        return torch.autograd.grad(loss, points, allow_unused=True)[0]


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; NaN, which raises no flag, if either has one."""
    largest = float(a.abs().max())
    return float((a - b).abs().max()) / largest if largest > 0 else 0.0


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
        *_gradient_flags(before),
        *_function_flags(before),
        *_nan_flags(nan, outcomes, n),
        *_repair_flags(outcomes, clean, n),
        *_order_flags(attacks, outcomes),
    ]
    return tuple(flags)


def _gradient_flags(seen: Preflight) -> list[Flagged]:
    if not seen.differentiable:
        text = (
            "The logits have no gradient with respect to the input, so attacks that climb one "
            "cannot run. Remove `detach` or `no_grad` from the model, or use black-box attacks."
        )
        return [Flagged(name="no_gradient", message=text)]
    flags = []
    if seen.non_finite_gradients:
        text = (
            f"{seen.non_finite_gradients} of {seen.examined} examples have a NaN or infinite input "
            "gradient, which attacks read as zero there. Find the operation that makes it: run the "
            "model in float64 and under torch.autograd.detect_anomaly."
        )
        flags.append(Flagged(name="non_finite_gradients", message=text, severity="invalid"))
    share = seen.zero_gradients / seen.examined
    if share > 0.01:
        text = (
            f"{seen.zero_gradients} of {seen.examined} examples have an input gradient of exactly "
            "zero, so a gradient attack cannot move them: the loss has saturated, or an operation "
            "cuts the gradient. Climb the margin loss, attack in float64, add a black-box attack."
        )
        severity = "invalid" if share >= 0.1 else "warning"
        flags.append(Flagged(name="zero_gradients", message=text, severity=severity))
    return flags


def _function_flags(seen: Preflight) -> list[Flagged]:
    flags = []
    if seen.randomness > seen.tolerance:
        text = (
            "The same inputs gave different logits twice, so attacks climb one draw and are judged "
            "on another. A function that hides a module in train mode does this: pass the module. "
            "For a defence that is random on purpose, average gradients and predictions over draws."
        )
        flags.append(Flagged(name="random_outputs", message=text, severity="invalid"))
    elif seen.batch_dependence > seen.tolerance:
        text = (
            "An example's logits change with the other examples of its batch (by "
            f"{seen.batch_dependence:.1e} of the largest logit), so flags depend on the batch "
            "size. Batch normalisation in train mode does this: pass the module, not a function "
            "around it."
        )
        flags.append(Flagged(name="batch_dependent", message=text, severity="invalid"))
    elif seen.gradient_path > seen.tolerance:
        text = (
            "Logits differ between passes with and without gradients (by "
            f"{seen.gradient_path:.1e} of the largest logit), so attacks climb another function "
            "than the one that is judged. Look for kernels chosen by torch.is_grad_enabled."
        )
        flags.append(Flagged(name="gradient_path", message=text, severity="invalid"))
    if seen.probabilities:
        text = (
            "The outputs are rows of probabilities, not logits: the loss takes their softmax again "
            "and its gradient fades. Return what comes before the softmax."
        )
        flags.append(Flagged(name="probabilities", message=text))
    return flags


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
        if missed - gained > SIGMAS * math.sqrt(missed + gained):
            text = (
                f"'{strong}' is the larger search, but '{weak}' fools {missed} examples that it "
                f"misses, and misses {gained}. Gradients mislead, or the step is too long: try a "
                "smaller step_size, loss='margin', more restarts."
            )
            flags.append(Flagged(name="stronger_is_weaker", message=text))
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
