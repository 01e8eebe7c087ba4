"""Whether a model reads the label from the perturbation that was made to hide it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.evaluation.reliability import clearly_more
from robustssm.ops import divergence
from robustssm.records import Flagged

LEAKING = 0.1
"""Share of foreign inputs that must take on a perturbation's label before it is said to leak."""


def leaking(
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    mask: Bool[Tensor, "..."] | None = None,
) -> list[Flagged]:
    """Pastes the perturbation of every example on another, of another class.

    An attack on example i leads away from its class y[i], so on x[j] the perturbation should bring
    y[i] up less often than its opposite does. In a model that was trained on one attack, and reads
    the label from what that attack does, it brings it up more often. Attacks as in training: PGD-10
    with its last iterate, and FGSM. Examples that the model has wrong are left out.

    Args:
        model: In eval mode.
        x: Clean inputs (batch, ...).
        y: Their classes (batch,).
        threat: What the perturbations may be.
        streams: Randomness.
        batch_size: Examples at a time.
        mask: What may be touched, as attacks take it.

    Returns:
        One flag, or none.
    """
    access = Access.of(model)
    rows = (~divergence.wrong(access.logits(x), y)).nonzero().flatten()
    x, y = x[rows], y[rows]
    mask = None if mask is None else mask[rows.to(mask.device)]
    other = streams.noise("diagnose", "pairs").permutation(len(rows)).to(x.device)
    foreign = y[other] != y
    if not foreign.any():
        return []
    for attack in (PGD(steps=10, keep="last"), FGSM()):
        noise = streams.examples("diagnose", "leaking", attack.label, indices=rows.cpu())
        delta = torch.zeros_like(x)
        for some in torch.arange(len(rows), device=x.device).split(batch_size):
            free = None if mask is None else mask[some.to(mask.device)]
            stream = noise.select(some)
            found = attack(access, x[some], y[some], threat=threat, noise=stream, mask=free)
            delta[some] = found - x[some]
        taken, opposite = (
            foreign & (access.logits(points.clamp(*threat.bounds)).argmax(1) == y)
            for points in (x[other] + delta, x[other] - delta)
        )
        more, less = int((taken & ~opposite).sum()), int((opposite & ~taken).sum())
        share = int(taken.sum()) / int(foreign.sum())
        if clearly_more(more, less) and share >= LEAKING:
            text = (
                f"Perturbations that '{attack.label}' made to lead away from a class, pasted on "
                f"inputs of other classes, make the model predict that very class on {share:.0%} "
                "of them: it reads the label from the perturbation. Accuracy under such attacks is "
                "no robustness; attack with loss='kl', which hides the label, and by black box."
            )
            return [Flagged(name="label_leaking", message=text, severity="invalid")]
    return []
