"""What the parts of a model read and write, by name, without touching the model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.errors import Inapplicable
from robustssm.core.modes import mode
from robustssm.core.observation import Part, observing
from robustssm.core.types import Inputs
from robustssm.layers.base import SequenceLayer


class Place(NamedTuple):
    """Where in a model a part is: the same for every input."""

    layer: int
    """Number of the sequence layer that it belongs to, from 0, in the order of the model."""
    part: Part
    occurrence: int
    """A layer may have several parts of a kind: from 0, in the order in which they run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation:
    """What one part read and wrote."""

    place: Place
    path: str
    """Name of the module that has the part, as in `named_modules`."""
    before: Float[Tensor, "batch length channels"]
    after: Float[Tensor, "batch length _"]


def layers_of(model: nn.Module) -> dict[str, SequenceLayer]:
    """Name to module of every sequence layer that is in no other one, in the model's order.

    Raises:
        Inapplicable: If there is none; names the kinds of modules found.
    """
    found: dict[str, SequenceLayer] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") or outer == "" for outer in found)
        if isinstance(module, SequenceLayer) and not inside:
            found[path] = module
    if not found:
        kinds = sorted({type(m).__name__ for m in model.modules() if m is not model})
        raise Inapplicable(
            "Probes of components need sequence layers (robustssm.layers.base.SequenceLayer); "
            f"{type(model).__name__} has none, only {', '.join(kinds[:12]) or 'itself'}. Build the "
            "model of this library's layers."
        )
    return found


def capture(model: nn.Module, x: Inputs) -> tuple[Activation, ...]:
    """Runs the model in eval mode and without gradients, and keeps what its parts read and wrote.

    Args:
        model: Inputs to logits, with sequence layers of this library inside.
        x: Inputs (batch, ...).

    Returns:
        One activation per part that ran, in the order in which they ended. Parts outside every
        layer and its block are left out.

    Raises:
        Inapplicable: If there are no sequence layers.
    """
    paths = list(layers_of(model))
    seen, overwritten = _run(model, x, keep=Tensor.detach)
    if overwritten:  # by a part that works in place: kept anew, as copies
        seen, _ = _run(model, x, keep=Tensor.clone)
    return tuple(_placed(seen, paths))


def _run(
    model: nn.Module, x: Inputs, *, keep: Callable[[Tensor], Tensor]
) -> tuple[list["_Seen"], bool]:
    """What was reported, and whether some of it was overwritten afterwards."""
    names = {module: path for path, module in model.named_modules()}
    seen: list[_Seen] = []
    versions: list[int] = []

    def listen(module: nn.Module, part: Part, before: Tensor, after: Tensor) -> None:
        if module in names:
            kept = keep(before), keep(after)
            seen.append((names[module], part, *kept))
            versions.extend(map(_version, kept))

    with torch.no_grad(), mode(model, training=False), observing(listen):
        model(x)
    now = [_version(tensor) for *_, before, after in seen for tensor in (before, after)]
    return seen, now != versions


_Seen = tuple[str, Part, Tensor, Tensor]
"""Path of the module, its part, and the sequences before and after it."""


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference mode does not count


def _placed(seen: list[_Seen], paths: list[str]) -> Iterator[Activation]:
    counts: dict[tuple[int, Part], int] = {}
    for path, part, before, after in seen:
        layer = _layer(path, paths)
        if layer is None:
            continue
        occurrence = counts.get((layer, part), 0)
        counts[layer, part] = occurrence + 1
        yield Activation(
            place=Place(layer, part, occurrence), path=path, before=before, after=after
        )


def _layer(path: str, paths: list[str]) -> int | None:
    """The layer that a module is in, or the only one that is in it."""
    within = [n for n, outer in enumerate(paths) if _contains(outer, path)]
    around = [n for n, inner in enumerate(paths) if _contains(path, inner)]
    if within:
        return within[0]
    return around[0] if len(around) == 1 else None


def _contains(outer: str, inner: str) -> bool:
    return outer in ("", inner) or inner.startswith(f"{outer}.")
