"""Gradients of hand-written operations that can themselves be differentiated."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    dy: Inexact[Tensor, "..."],
) -> list[Tensor | None]:
    """The gradients of function(*inputs), by way of operations that autograd knows.

    For the backward pass of a hand-written one, where gradients are enabled: second derivatives.

    Args:
        function: The operation, made of torch operations.
        inputs: Its arguments, as they came: a copy would have lost what they were made of. One that
            has no graph, though its gradient is wanted, may stand in only where that gradient does
            not depend on it.
        wanted: Of which arguments the gradient is wanted; more entries are left out.
        dy: Gradient of the result.

    Returns:
        A gradient for each input, None where it is not wanted.
    """
    # Views, one node each: what one argument owes to another must not count twice.
    views = [None if x is None else x.view_as(x) if x.requires_grad else x.detach() for x in inputs]
    chosen = [
        x if x.requires_grad else x.requires_grad_()
        for x, want in zip(views, wanted, strict=False)
        if x is not None and want
    ]
    found = iter(
        torch.autograd.grad(function(*views), chosen, dy, create_graph=True, materialize_grads=True)
    )
    return [
        next(found) if x is not None and want else None
        for x, want in zip(views, wanted, strict=False)
    ]
