"""From examples in memory to batches on the device: order, gather, one copy, floats."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.data.base import Split


@dataclass(frozen=True)
class Batch:
    """Some examples on the device of a run, and which rows of their split they are."""

    x: Float[Tensor, "batch ..."]
    y: Int[Tensor, " batch"]
    indices: Int[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.y)


def epoch_order(n: int, noise: Noise) -> Int[Tensor, " n"]:
    """A random order of n examples: that of one epoch, if `noise` is that epoch's."""
    return noise.permutation(n)


def batches(
    split: Split,
    *,
    order: Int[Tensor, " chosen"] | None = None,
    batch_size: int,
    drop_last: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yields the examples of a split, batch by batch, on the device, as floats.

    Rows are gathered where the split lies, as stored. What is not yet on the device is copied once,
    as stored (uint8 is a quarter of the bytes), through pinned memory if the device is a GPU; so a
    `split.to(device)` needs no copies at all. Only then does uint8 become float32 in [0, 1].

    Args:
        split: The examples.
        order: Rows to visit, (chosen,), in this order; None for all rows in theirs.
        batch_size: Examples per batch, positive; the last batch has what is left.
        drop_last: Leaves out a last batch that is smaller.
        device: Where batches go.

    Raises:
        ValueError: If there is no row, a row does not exist, or no batch would come.
    """
    order = torch.arange(len(split)) if order is None else order.cpu()
    if len(order) == 0:
        raise ValueError(violation("Batches", "have examples to come from", "an empty split"))
    if int(order.min()) < 0 or int(order.max()) >= len(split):
        raise ValueError(
            violation(
                "`order`",
                f"name rows from 0 to {len(split) - 1}",
                f"rows from {int(order.min())} to {int(order.max())}",
            )
        )
    if batch_size < 1 or (drop_last and batch_size > len(order)):
        most = f", at most {len(order)} with drop_last" if drop_last else ""
        raise ValueError(violation("`batch_size`", f"be positive{most}", batch_size))
    end = len(order) - len(order) % batch_size if drop_last else len(order)
    return _gathered(split, order[:end], batch_size, torch.device(device))


def as_floats(
    x: UInt8[Tensor, "*shape"] | Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Inputs as models see them: uint8 becomes x / 255 in float32, floats stay as they are.

    The quotient is correctly rounded and so the same on every device.
    """
    if x.dtype != torch.uint8:
        return x
    # A Python number as divisor would be turned into a product by 1 / 255 on a GPU: other bits.
    return x.float().div_(torch.full((), 255.0, device=x.device))


def _gathered(
    split: Split, order: Int[Tensor, " chosen"], batch_size: int, device: torch.device
) -> Iterator[Batch]:
    for rows in order.split(batch_size):
        pinned = rows.pin_memory() if device.type == "cuda" else rows
        indices = pinned.to(device, non_blocking=True)
        x = as_floats(_gather(split.x, rows, indices))
        yield Batch(x, _gather(split.y, rows, indices), indices)


def _gather(source: Tensor, rows: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]) -> Tensor:
    """The rows of `source` on the device of `indices`, which are `rows` on that device."""
    if source.device == indices.device:
        return source.index_select(0, indices)
    if source.device.type != "cpu":
        return source.index_select(0, rows.to(source.device)).to(indices.device)
    shape = (len(rows), *source.shape[1:])
    gathered = torch.empty(shape, dtype=source.dtype, pin_memory=indices.is_cuda)
    torch.index_select(source, 0, rows, out=gathered)
    return gathered.to(indices.device, non_blocking=indices.is_cuda)
