"""How robust a model is: every attack, each outcome verified by a forward pass of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from robustssm.attacks.access import frozen
from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.config import to_dict
from robustssm.core.modes import mode
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.evaluation import reliability
from robustssm.evaluation.reliability import Outcome
from robustssm.records import EvaluationResult, Provenance

WRONG_EXAMPLES = 128
"""How many clean errors each attack is given too, to see whether it repairs them."""


@runtime_checkable
class Progress(Protocol):
    """Told after every batch how far an attack has come."""

    def __call__(self, *, attack: str, done: int, total: int) -> None:
        """`done` of the `total` examples that this attack is given are finished."""
        ...


def evaluate(
    model: LogitsFn,
    data_x: Shaped[Tensor, "..."],
    data_y: Shaped[Tensor, "..."],
    attacks: Sequence[Attack] | Mapping[str, Attack],
    *,
    threat: Threat,
    streams: Streams,
    batch_size: int,
    device: torch.device | str | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Runs attacks on a model in eval mode and records one flag per example and attack.

    Example i draws from the stream ("evaluate", label, i) whatever its batch, so flags do not
    depend on `batch_size`. Each attack is given the examples that are right without it (the others
    count as fooled), plus the first 128 that are wrong: where an attack repairs those, it is
    broken, or the model reads the label from the perturbation, and the result says so. What an
    attack returns is projected onto the threat set and classified by a forward pass of its own; a
    row of logits with a NaN is a wrong answer.

    Args:
        model: Maps (batch, ...) to logits (batch, classes). A module is switched to eval mode and
            back, and frozen meanwhile if it can be (`core.types.Freezable`); any other function
            has no mode and must already be as it is to be judged.
        data_x: Inputs (n, ...), floats within `threat.bounds`.
        data_y: True classes (n,), from 0.
        attacks: Attacks by their labels, or under labels of your own. None: clean accuracy only.
        threat: What they may do.
        streams: Randomness.
        batch_size: Examples at a time, at least 1.
        device: Where batches are sent, the model's; where `data_x` is, if None.
        provenance: Where the result comes from, kept with it.
        progress: Called after every batch of every attack.

    Returns:
        Flags, and warnings wherever the attack, rather than the model, may be what failed.

    Raises:
        ValueError: If data, labels, logits or attacks do not fit together; says how.
    """
    named = _named(attacks)
    _check_data(data_x, data_y, threat, batch_size)
    job = _Job(model, data_x, data_y, threat, streams, batch_size, device, progress)
    with torch.inference_mode(False), mode(model, training=False), frozen(model):
        clean, nan = job.classify()
        right, wrong = clean.nonzero().flatten(), (~clean).nonzero().flatten()
        seen = (right if len(right) else wrong)[: reliability.EXAMPLES]
        preflight = reliability.preflight(model, *job.batch(seen), batch_size=batch_size)
        outcomes = {
            label: job.attack(label, attack, right, wrong[:WRONG_EXAMPLES])
            for label, attack in named.items()
        }
    return EvaluationResult(
        clean=tuple(clean.tolist()),
        survived={label: tuple(o.survived.tolist()) for label, o in outcomes.items()},
        threat=to_dict(threat),
        warnings=reliability.warnings(
            preflight, named, outcomes, clean=int(clean.sum()), n=len(clean), nan=int(nan.sum())
        ),
        provenance=provenance,
    )


@dataclass
class _Job:
    """One model on one data set: the batches, and what became of them."""

    model: LogitsFn
    x: Tensor
    y: Tensor
    threat: Threat
    streams: Streams
    batch_size: int
    device: torch.device | str | None
    progress: Progress | None

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `rows`, on the device."""
        x = self.x[rows.to(self.x.device)].to(self.device or self.x.device)
        return x, self.y[rows.to(self.y.device)].to(x.device, torch.int64)

    def classify(self) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Whether each clean example is right, and whether its logits hold a NaN; on the CPU."""
        right, nan = [], []
        for rows in torch.arange(len(self.y)).split(self.batch_size):
            x, y = self.batch(rows)
            correct, is_nan = self._judge(x, y)
            right.append(correct)
            nan.append(is_nan)
        return torch.cat(right), torch.cat(nan)

    def attack(self, label: str, attack: Attack, right: Tensor, wrong: Tensor) -> Outcome:
        """Attacks the examples `right`, then those of `wrong`; see `evaluate`."""
        rows = torch.cat((right, wrong))
        unfooled, nan = torch.zeros(len(self.y), dtype=torch.bool), 0
        done = 0
        for some in rows.split(self.batch_size):
            x, y = self.batch(some)
            noise = self.streams.examples("evaluate", label, indices=some)
            x_adv = attack(self.model, x, y, threat=self.threat, noise=noise)
            unfooled[some], is_nan = self._judge(x_adv, y)
            nan += int(is_nan.sum())
            done += len(some)
            if self.progress is not None:
                self.progress(attack=label, done=done, total=len(rows))
        survived = unfooled.clone()
        survived[wrong] = False
        return Outcome(
            survived=survived, repaired=int(unfooled[wrong].sum()), tried=len(wrong), nan=nan
        )

    @torch.no_grad()
    def _judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        if logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(
                "The model must return logits of shape (batch, classes); got "
                f"{tuple(logits.shape)} for {len(x)} inputs. Wrap it so that it does."
            )
        if logits.shape[1] < 2 or int(y.max()) >= logits.shape[1]:
            raise ValueError(
                f"Labels must be below the model's number of classes, {logits.shape[1]}, and "
                f"that at least 2; got the label {int(y.max())}. Check the head and the labels."
            )
        nan = logits.isnan().any(1)
        return ((logits.argmax(1) == y) & ~nan).cpu(), nan.cpu()


def _named(attacks: Sequence[Attack] | Mapping[str, Attack]) -> dict[str, Attack]:
    if isinstance(attacks, Mapping):
        named = dict(attacks)
    else:
        named = {attack.label: attack for attack in attacks}
        if len(named) < len(attacks):
            labels = [attack.label for attack in attacks]
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(
                f"Every attack must have a label of its own; got '{twice}' twice. "
                "Give a mapping from labels of your own to attacks."
            )
    if "clean" in named:
        raise ValueError(
            "No attack must be labelled 'clean', which names the flags without attack."
        )
    return named


def _check_data(x: Tensor, y: Tensor, threat: Threat, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`evaluate(batch_size=...)` must be at least 1; got {batch_size}.")
    if not len(x):
        raise ValueError("`evaluate` needs at least one example; got none. Check the split.")
    if y.dim() != 1 or len(x) != len(y):
        raise ValueError(
            "`evaluate` needs one label per example, in a tensor of shape (n,); got inputs of "
            f"shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}."
        )
    if not x.is_floating_point() or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            "`evaluate` needs floating-point inputs and integer labels; got "
            f"{x.dtype} and {y.dtype}. Pixels in uint8 are divided by 255 first."
        )
    if int(y.min()) < 0:
        raise ValueError(f"Labels must be classes counted from 0; got {int(y.min())}.")
    threat.check(x, attack="evaluate")
