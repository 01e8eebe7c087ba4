"""Where a token is, for layers that do not see it themselves."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sines(length: int, d_model: int) -> Float[Tensor, "length d_model"]:
    """P[t, 2i] = sin(t / 10000^(2i / d_model)), P[t, 2i + 1] = cos of the same; in float64.

    Args:
        length: Number of positions.
        d_model: Channels, an even number.

    Source: vaswani2017attention, section 3.5.
    """
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    rates = torch.exp(-math.log(10_000) * even / d_model)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
