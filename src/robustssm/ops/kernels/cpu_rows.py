"""How compiled code is given sequences: rows that are equally far apart."""

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """Itself if rows are equally far apart, as in columns of a contiguous tensor; or a copy."""
    regular = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if regular else x.contiguous()
