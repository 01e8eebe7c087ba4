"""What is evaluated: a model on examples under a threat, its batches, and who is right."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from robustssm.attacks.access import Access
from robustssm.attacks.threat import Threat
from robustssm.core.errors import violation
from robustssm.core.types import LogitsFn


class Judged(NamedTuple):
    """Who is right, and whose logits hold a NaN (which is wrong); on the CPU."""

    right: Bool[Tensor, " batch"]
    nan: Bool[Tensor, " batch"]


class Batch(NamedTuple):
    """Some examples, on the device."""

    x: Float[Tensor, "batch ..."]
    y: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch ..."] | None


@dataclass(frozen=True)
class Problem:
    """A model, examples, and what an adversary may do to them."""

    access: Access
    x: Float[Tensor, "examples ..."]
    y: Int[Tensor, " examples"]
    threat: Threat
    mask: Bool[Tensor, "..."] | None = None
    device: torch.device | str | None = None
    draws: int = 1
    """Passes whose mean prediction counts, for a model that is random on purpose."""

    def batch(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The examples `rows`, on the device."""
        x = self.x[rows.to(self.x.device)].to(self.device or self.x.device)
        y = self.y[rows.to(self.y.device)].to(x.device, torch.int64)
        if self.mask is None:
            return Batch(x, y, None)
        mask = self.mask.to(x.device)
        shared = mask.dim() == self.x.dim() - 1 or len(mask) != len(self.x)
        chosen = mask.expand(len(rows), *mask.shape) if shared else mask[rows.to(mask.device)]
        return Batch(x, y, chosen)

    @torch.no_grad()
    def judge(self, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]) -> Judged:
        """Classifies points, by a forward pass of their own.

        Raises:
            ValueError: If the model does not return logits for these labels; says how.
        """
        logits = self.access.logits(x)
        check_logits(logits, x, y)
        nan = logits.isnan().any(1)
        if self.draws > 1:
            share = logits.softmax(1)
            for _ in range(self.draws - 1):
                share = share + self.access.logits(x).softmax(1)
            logits = share
        return Judged(((logits.argmax(1) == y) & ~nan).cpu(), nan.cpu())

    def classify(self, rows: int) -> Judged:
        """Judges every clean example, `rows` at a time."""
        parts = [
            self.judge(some.x, some.y)
            for chunk in torch.arange(len(self.y)).split(rows)
            for some in [self.batch(chunk)]
        ]
        return Judged(torch.cat([p.right for p in parts]), torch.cat([p.nan for p in parts]))


def check_logits(logits: Tensor, x: Tensor, y: Tensor) -> None:
    """Refuses what is no table of logits for these inputs and labels.

    Raises:
        ValueError: Says what is wrong with the shape, or which label is no class.
    """
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


def check_data(
    x: Shaped[Tensor, "..."],
    y: Shaped[Tensor, "..."],
    threat: Threat,
    mask: Shaped[Tensor, "..."] | None,
) -> None:
    """Refuses examples that cannot be evaluated.

    Raises:
        ValueError: Says what must hold, what came and what to do.
    """
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
    if threat.eps <= 0:
        raise ValueError(
            violation(
                "`evaluate(threat=...)`",
                "have eps > 0, as at 0 there is nothing to attack",
                f"eps={threat.eps}",
                "For clean accuracy alone, give no attacks.",
            )
        )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            violation(
                "`evaluate(mask=...)`", "hold booleans, True where touching is allowed", mask.dtype
            )
        )
    threat.check(x, attack="evaluate")


def data_hash(x: Tensor, y: Tensor, mask: Tensor | None = None) -> str:
    """SHA-256 of examples, labels and mask: their types, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in (x, y.to(torch.int64)) if mask is None else (x, y.to(torch.int64), mask):
        _add(digest, "", tensor)
    return digest.hexdigest()


@torch.no_grad()
def model_hash(model: LogitsFn, example: Float[Tensor, "batch ..."]) -> str:
    """SHA-256 of a module's class and state, or of another function's logits on some examples."""
    digest = hashlib.sha256()
    if isinstance(model, nn.Module):
        digest.update(f"{type(model).__module__}.{type(model).__qualname__}".encode())
        for name, tensor in sorted(model.state_dict().items()):
            if isinstance(tensor, Tensor):
                _add(digest, name, tensor)
    else:
        _add(digest, "logits", model(example))
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
