"""What the wrappers of compiled code share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """Itself if rows are equally far apart, as in columns of a contiguous tensor; or a copy."""
    regular = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if regular else x.contiguous()


def composed_gradients(
    composed: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    dy: Tensor,
) -> list[Tensor | None]:
    """Gradients that are differentiable again, of the same function made of torch operations."""
    # One node each, even if two inputs are one tensor.
    views = [None if x is None else x.view_as(x) for x in inputs]
    chosen = [x for x, want in zip(views, wanted, strict=True) if x is not None and want]
    found = iter(torch.autograd.grad(composed(*views), chosen, dy, create_graph=True))
    return [next(found) if want else None for want in wanted]
