"""What processes tell each other at a step: gradients and scalars, in one flat buffer.

Models are not wrapped for it: training methods take gradients of inputs and of layers, run several
forward passes and call parts of the model. A step of a model with P real parameters in K tensors
moves 4 (P + K) bytes and a few scalars: 0.4 to 3.6 MB for the 0.1 to 0.9 million parameters of the
published models. All processes get the same bits, and so take the same step.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.placement import Placement

Scalars = dict[str, Float[Tensor, ""]]


def summed(
    model: nn.Module, scalars: Sequence[Mapping[str, Tensor]], placement: Placement
) -> list[Scalars]:
    """Replaces gradients by their sums over all processes, and returns those of the scalars.

    Every process weighs its own before: its rows over those of the batch. A parameter without a
    gradient anywhere keeps none, as an optimiser would decay it otherwise.

    Args:
        model: Whose parameters have gradients; scaled by the same factor in all processes.
        scalars: Of the updates since the latest step, weighted.
        placement: The processes; with one of them nothing is changed.
    """
    if placement.processes == 1:
        return [dict(each) for each in scalars]
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [_real(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]
    like = gradients[0]
    reached = torch.tensor([p.grad is not None for p in parameters]).to(like)
    values = torch.stack([t.to(like) for each in scalars for t in each.values()])
    pieces = [*(g.reshape(-1) for g in gradients), reached, values]
    total = placement.total(torch.cat(pieces)).split([len(piece) for piece in pieces])
    *parts, reached, values = total
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        # Only who has a gradient nowhere looks at `reached`, as a GPU would be waited for.
        if parameter.grad is None and reached[number] > 0:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            _real(parameter.grad).copy_(parts[number].view_as(gradient))
    found = iter(values)
    return [{name: next(found) for name in each} for each in scalars]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
