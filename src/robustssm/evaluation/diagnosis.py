"""Costly checks of a robustness number: stronger, blinder and foreign attacks, and curves.

After athalye2018obfuscated, section 3.1, and carlini2019evaluating, section 5.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.access import Access, frozen
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.base import Attack
from robustssm.attacks.pgd import PGD
from robustssm.attacks.square import Square
from robustssm.attacks.threat import Threat
from robustssm.core.errors import Inapplicable, OutOfTime
from robustssm.core.modes import mode
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.evaluation import curves
from robustssm.evaluation.leaking import leaking
from robustssm.evaluation.masking import no_gradient
from robustssm.evaluation.reliability import beyond_chance, clearly_more
from robustssm.evaluation.substitute import Substitute
from robustssm.ops import divergence
from robustssm.records import Curve, Flagged

QUERIES = 1000
"""Of the black-box attack."""

_TARGETS = 3  # of the strongest gradient attack that it is compared with


@dataclass(frozen=True)
class Diagnosis:
    """What the costly checks found."""

    flags: tuple[Flagged, ...]
    curves: tuple[Curve, ...]


def diagnose(
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    steps: int = 20,
    surrogate: LogitsFn | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Diagnosis:
    """Runs every costly check on a few examples.

    Args:
        model: Maps (batch, ...) to logits. A module is switched to eval mode and back.
        x: Clean inputs (batch, ...), of which the model is right; others count as fooled.
        y: Their classes (batch,).
        threat: What an adversary may do.
        streams: Randomness.
        batch_size: Examples at a time.
        steps: Of the gradient attack.
        surrogate: Another model from which attacks are transferred, differentiable; None for a
            small network that learns this one's answers.
        mask: What may be touched, as attacks take it.

    Returns:
        Flags, and accuracy over eps, over steps and over restarts. Without a gradient there is
        nothing to compare, and the only flag says so.
    """
    context = torch.inference_mode(False), mode(model, training=False), frozen(model)
    with context[0], context[1], context[2]:
        job = _Job(
            model=Access.of(model),
            x=x.clone(),
            y=y.clone(),
            threat=threat,
            streams=streams,
            batch_size=batch_size,
            steps=steps,
            mask=None if mask is None else mask.clone(),
        )
        try:
            job.model.climb(job.x[:1], lambda logits, rows: divergence.margin(logits, job.y[:1]))
        except OutOfTime:
            raise
        except Exception as failure:  # whatever a kernel says that has no backward pass
            return Diagnosis(
                flags=(no_gradient(f"{type(failure).__name__}: {failure}"),), curves=()
            )
        drawn = job.curves()
        white = job.white_box(drawn)
        flags = (
            *rises(drawn),
            *job.black_box(white),
            *job.transfer(white, surrogate),
            *job.everything(drawn[0]),
            *leaking(
                job.model,
                job.x,
                job.y,
                threat=threat,
                streams=streams,
                batch_size=batch_size,
                mask=job.mask,
            ),
        )
    return Diagnosis(flags=flags, curves=drawn)


def rises(drawn: Sequence[Curve]) -> tuple[Flagged, ...]:
    """Curves on which a larger set or a longer search finds clearly less, by a sign test.

    Args:
        drawn: Curves, values ascending.
    """
    flags = []
    for curve in drawn:
        worst = (0, 0, 0.0, 0.0)
        for (small, fewer), (large, more) in itertools.combinations(
            zip(curve.values, curve.survived, strict=True), 2
        ):
            missed = sum(now and not then for then, now in zip(fewer, more, strict=True))
            gained = sum(then and not now for then, now in zip(fewer, more, strict=True))
            if clearly_more(missed, gained) and missed - gained > worst[0] - worst[1]:
                worst = (missed, gained, small, large)
        if worst[0]:
            missed, gained, small, large = worst
            text = (
                f"With {curve.axis} {large:g} '{curve.attack}' misses {missed} examples that it "
                f"fools with {small:g}, and gains {gained}; more should never find less. "
                + _ADVICE[curve.axis]
            )
            flags.append(Flagged(name=f"rises_with_{curve.axis}", message=text))
    return tuple(flags)


_ADVICE = {
    "eps": "Gradients mislead further out, or the steps are too long: try a smaller step_size.",
    "steps": "Gradients mislead, or the step is too long: try a smaller step_size, loss='margin'.",
    "restarts": "The model answers at random: average its predictions over draws.",
}


@dataclass(frozen=True)
class _Job:
    """The examples, and the attacks that are run on them."""

    model: Access
    x: Tensor
    y: Tensor
    threat: Threat
    streams: Streams
    batch_size: int
    steps: int
    mask: Tensor | None

    def curves(self) -> tuple[Curve, Curve, Curve]:
        """Over eps, steps and restarts."""
        attack = PGD(steps=self.steps)
        eps, full = self.threat.eps, self.full_range
        radii = {0.0, eps / 4, eps / 2, eps, min(2 * eps, max(eps, full)), max(eps, full)}
        counts = sorted({1, 5, 10, self.steps, 50})
        options: Any = {
            "threat": self.threat,
            "streams": self.streams,
            "batch_size": self.batch_size,
            "mask": self.mask,
        }
        # Of its last iterate: the best of more iterates, as PGD keeps it, cannot be worse.
        last = PGD(steps=self.steps, keep="last")
        of = self.model, self.x, self.y
        return (
            curves.over_eps(attack, *of, values=sorted(radii), **options),
            curves.over_steps(last, *of, values=counts, **options),
            curves.over_restarts(attack, *of, values=(1, 2, 5), **options),
        )

    @property
    def full_range(self) -> float:
        """The radius within which every input lies."""
        (low, high), size = self.threat.bounds, self.x[0].numel()
        return (high - low) * {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[self.threat.norm]

    def white_box(self, drawn: Sequence[Curve]) -> Bool[Tensor, " n"]:
        """Who holds against every gradient attack within eps."""
        eps, steps, restarts = drawn
        held = self.survivors(PGD(steps=self.steps, loss="margin", restarts=2))
        for row in (eps.survived[eps.values.index(self.threat.eps)], *steps.survived):
            held &= torch.tensor(row)
        held &= torch.tensor(restarts.survived[-1])
        # At large eps PGD alone falls short on honest models, and black boxes would seem to win.
        for attack in (APGD(), APGDTargeted(targets=_TARGETS)):
            left = held.nonzero().flatten()
            if len(left):
                held[left] = self.survivors(attack, left)
        return held

    def survivors(
        self, attack: Attack, rows: Tensor | None = None, *, eps: float | None = None
    ) -> Bool[Tensor, " n"]:
        """Who holds against an attack, of some examples, within another radius."""
        rows = torch.arange(len(self.y)) if rows is None else rows
        radius = self.threat.eps if eps is None else eps
        return curves.survivors(
            attack,
            self.model,
            self.x[rows.to(self.x.device)],
            self.y[rows.to(self.y.device)],
            threat=dataclasses.replace(self.threat, eps=radius),
            streams=self.streams,
            batch_size=self.batch_size,
            path=("diagnose", attack.label),
            indices=rows,
            mask=None if self.mask is None else self.mask[rows.to(self.mask.device)],
        )

    def black_box(self, white: Tensor) -> list[Flagged]:
        """A search that sees logits only must not find what gradients miss."""
        try:
            held = self.survivors(Square(queries=QUERIES))
        except Inapplicable:
            return []
        text = (
            "Square, which sees no gradient, fools {more} examples that the gradient attacks miss, "
            "and misses {less}. Gradients mislead, and the true robustness is lower still: raise "
            "`queries`, climb the margin, find the operation that masks the gradient."
        )
        return _wins("black_box_wins", text, white, held)

    def transfer(self, white: Tensor, surrogate: LogitsFn | None) -> list[Flagged]:
        """An attack made for another model must not find what this one's gradients miss."""
        found = []
        source = surrogate or Substitute(
            self.model.logits, self.x, threat=self.threat, noise=self.streams.noise("diagnose")
        )
        with mode(surrogate, training=False), frozen(source):
            for rows in torch.arange(len(self.y)).split(self.batch_size):
                points = PGD(steps=2 * self.steps)(
                    source,
                    self.x[rows],
                    self.y[rows],
                    threat=self.threat,
                    noise=self.streams.examples("diagnose", "transfer", indices=rows),
                    mask=None if self.mask is None else self.mask[rows],
                )
                found.append(~divergence.wrong(self.model.logits(points), self.y[rows]).cpu())
        text = (
            "Perturbations made for another model fool {more} examples that this model's own "
            "gradients miss, and miss {less}. Gradients are masked: attack by transfer and by "
            "black box, and find the operation that masks them."
        )
        return _wins("transfer_wins", text, white, torch.cat(found))

    def everything(self, over_eps: Curve) -> list[Flagged]:
        """At a radius that holds every input, each example can become one of another class."""
        if self.threat.restricted or self.mask is not None or len(self.y.unique()) < 2:
            return []  # the other inputs need not be within reach
        left = torch.tensor(over_eps.survived[-1]).nonzero().flatten()
        for attack in (
            PGD(steps=5 * self.steps, step_size=0.1, restarts=2),
            PGD(steps=5 * self.steps, step_size=0.1, restarts=2, loss="margin"),
            Square(queries=QUERIES),
        ):
            if len(left):
                left = left[self.survivors(attack, left, eps=over_eps.values[-1])]
        share = len(left) / len(self.y)
        if len(left) < 2 or share <= 0.01:
            return []
        text = (
            f"{len(left)} of {len(self.y)} examples hold within eps {over_eps.values[-1]:g}, where "
            "every input lies, those of other classes too, against PGD and Square. The attacks "
            "fail, so no smaller eps can be believed either: look for what masks the gradient."
        )
        severity = "invalid" if share >= 0.1 else "warning"
        return [Flagged(name="survives_everything", message=text, severity=severity)]


def _wins(name: str, text: str, white: Tensor, held: Tensor) -> list[Flagged]:
    """What an attack without this model's gradients finds beyond those with them."""
    more, less = int((white & ~held).sum()), int((~white & held).sum())
    outright = clearly_more(more, less)
    if not outright and not beyond_chance(more, int(white.sum())):
        return []
    severity = "invalid" if outright or more >= 0.1 * int(white.sum()) else "warning"
    return [Flagged(name=name, message=text.format(more=more, less=less), severity=severity)]
