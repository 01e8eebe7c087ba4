"""Which test examples poisons are to get wrong, in which groups, and who perturbs for which."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.core.errors import violation
from robustssm.core.modes import mode
from robustssm.core.rng import Noise
from robustssm.data.base import Split
from robustssm.data.batches import batches
from robustssm.poisoning.brewing import Brewing


@dataclass(frozen=True, eq=False)
class Group:
    """Targets whose gradient some poisons match."""

    targets: Int[Tensor, " targets"]
    """Rows of `Targets.examples`."""
    base: Int[Tensor, " poisons"]
    """Rows of the base examples."""
    high_loss: bool


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of one attack, and the groups that they and the base examples form."""

    examples: Split
    """Inputs as the model takes them."""
    rows: Int[Tensor, " targets"]
    """Rows of the test split."""
    high_loss: Bool[Tensor, " targets"]
    groups: tuple[Group, ...]


def choose_targets(
    model: nn.Module, test: Split, settings: Brewing, *, noise: Noise, batch_size: int = 512
) -> Targets:
    """Draws targets and groups them, those of high loss before the others.

    Candidates are drawn at random. The first groups are of correctly classified ones, by falling
    loss; the others follow in the order in which they were drawn. Base examples 0, 1, ... go to the
    groups in turn, equally many to each of a kind.

    Args:
        model: Trained on clean data.
        test: The examples that may become targets.
        settings: Counts and shares.
        noise: Source of the choice.
        batch_size: Of the forward passes.

    Raises:
        ValueError: If there are too few examples, none is classified correctly, or there are fewer
            poisons than groups.
    """
    if settings.targets > len(test):
        raise ValueError(
            violation(
                "`Brewing(targets=...)`",
                f"be at most the {len(test)} examples that may become targets",
                settings.targets,
            )
        )
    rows = noise.fork("targets").permutation(len(test))[: settings.targets]
    chosen = test.take(rows.to(test.y.device))
    losses, correct = judged(model, chosen, batch_size=batch_size)
    if settings.high_loss > 0 and not correct.any():
        raise ValueError(
            violation(
                "Some targets",
                "be classified correctly by the model that poisons are brewed on",
                f"0 of {len(rows)}",
                "Train it for longer, or set high_loss=0.",
            )
        )
    ranked = torch.where(correct, losses, -torch.inf).argsort(descending=True, stable=True)
    count = min(round(settings.high_loss * len(rows)), int(correct.sum()))
    high_loss = torch.zeros(len(rows), dtype=torch.bool)
    high_loss[ranked[:count]] = True
    kinds = ranked[:count], (~high_loss).nonzero()[:, 0]
    (inputs,) = batches(chosen, batch_size=len(rows))
    return Targets(
        Split(inputs.x, inputs.y), rows, high_loss, _grouped(kinds[0], kinds[1], settings)
    )


def judged(
    model: nn.Module, split: Split, *, batch_size: int
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Cross-entropy of every example in eval mode, and whether it is classified correctly."""
    device = next(model.parameters()).device
    losses, correct = [], []
    with torch.no_grad(), mode(model, training=False):
        for batch in batches(split, batch_size=batch_size, device=device):
            logits = model(batch.x.to(next(model.parameters()).dtype))
            losses.append(F.cross_entropy(logits, batch.y, reduction="none").double().cpu())
            correct.append((logits.argmax(1) == batch.y).cpu())
    return torch.cat(losses), torch.cat(correct)


def _grouped(
    high: Int[Tensor, " high"], others: Int[Tensor, " others"], settings: Brewing
) -> tuple[Group, ...]:
    parts = [list(kind.split(settings.group_size)) if len(kind) else [] for kind in (high, others)]
    share = settings.high_loss_poisons
    if not parts[0] or not parts[1]:
        share = float(bool(parts[0]))
    for_high = round(share * settings.poisons)
    counts = [
        *_spread(for_high, len(parts[0])),
        *_spread(settings.poisons - for_high, len(parts[1])),
    ]
    if min(counts) < 1:
        raise ValueError(
            violation(
                "`Brewing(poisons=...)`",
                f"leave one poison or more to each of the {len(counts)} groups of targets",
                f"{settings.poisons}, of which {for_high} for {len(parts[0])} groups of high loss",
                "Raise it or group_size.",
            )
        )
    bases = torch.arange(settings.poisons).split(counts)
    return tuple(
        Group(targets=targets, base=base, high_loss=index < len(parts[0]))
        for index, (targets, base) in enumerate(zip([*parts[0], *parts[1]], bases, strict=True))
    )


def _spread(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
