"""Whether the Triton kernels may be used on a GPU: they are first compared with torch, once."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from robustssm.ops.kernels import triton_scan, triton_selective_scan
from robustssm.ops.kernels.triton_support import available

_TOLERANCE = 1e-4
_TIME, _WIDTH = 40, 20  # more than one tile of either, not a multiple of it


def serves(x: Tensor) -> bool:
    """Whether operations on the device of `x` should ask the Triton kernels.

    On a CUDA device the first question compiles two kernels and compares values and gradients with
    torch's; where they fail or differ, that is said once and torch serves from then on.
    """
    return x.is_cuda and trusted(x.device, _checks)


@functools.cache
def trusted(device: torch.device, checks: Callable[[torch.device], list[float]]) -> bool:
    """Whether the kernels are here and agree with torch on that device; asked once for each.

    Args:
        device: Where.
        checks: Gives relative differences; an exception is a failure.
    """
    verdict = available()
    reason = verdict.reason
    if verdict:
        try:
            worst = max(checks(device))
            if not worst <= _TOLERANCE:
                reason = f"they differ from torch by {worst:.0e} of the largest entry"
        except Exception as error:  # whatever compilers and drivers raise, in their own words
            reason = f"{type(error).__name__}: {error}"
    if reason:
        warnings.warn(
            f"The Triton kernels are not used on {device}: {reason} Slower torch code runs there.",
            RuntimeWarning,
            stacklevel=3,
        )
    return not reason


def _checks(device: torch.device) -> list[float]:
    """Relative differences of small problems, values and gradients."""
    return [*_selective_scan(device), *_linear_scan(device)]


def _selective_scan(device: torch.device) -> list[float]:
    from robustssm.ops.kernels import torch_selective_scan  # which needs the scan that asks here

    u, delta, B, C = (_wave(k, 2, _TIME, _WIDTH, device=device) for k in range(4))
    delta = delta.abs() / 4
    A, D = -1 - _wave(4, _WIDTH, _WIDTH, device=device).abs(), _wave(5, _WIDTH, device=device)
    inputs = u, delta, A, B, C, D

    def plain(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        scan = torch_selective_scan.SelectiveScan
        return scan.apply(delta * u, delta, A, B, C, False) + D * u

    return _differences(triton_selective_scan.selective_scan, plain, inputs)


def _linear_scan(device: torch.device) -> list[float]:
    a = torch.polar(1 - _wave(0, _WIDTH, device=device).abs() / 4, _wave(1, _WIDTH, device=device))
    b = torch.complex(
        _wave(2, 2, _TIME, _WIDTH, device=device), _wave(3, 2, _TIME, _WIDTH, device=device)
    )

    def plain(a: Tensor, b: Tensor) -> Tensor:
        states = [b[:, 0]]
        for step in b.unbind(1)[1:]:
            states.append(a * states[-1] + step)
        return torch.stack(states, 1)

    return _differences(triton_scan.linear_scan, plain, (a, b))


def _differences(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> list[float]:
    outcomes = []
    for function in (fast, plain):
        given = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.enable_grad():
            y = function(*given)
            gradients = torch.autograd.grad((y.abs() ** 2).sum(), given)
        outcomes.append((y.detach(), *gradients))
    return [
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(*outcomes, strict=True)
    ]


def _wave(kind: int, *shape: int, device: torch.device) -> Tensor:
    """Numbers between -1 and 1 without a pattern, the same everywhere."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(count * (12.9898 + kind) + kind).float().reshape(shape).to(device)
