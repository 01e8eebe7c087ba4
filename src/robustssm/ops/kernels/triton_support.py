"""Whether kernels in Triton can run here, and how they say what they cannot do.

Triton is not imported until it is asked for: it comes with torch for CUDA, and only there.
"""

import functools
import importlib.util
import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

DotPrecision = Literal["ieee", "tf32", "tf32x3", "bf16"]
"""How matrix products round their float32 operands; sums are float32 in every case.

"ieee" does not round (and needs the ordinary cores), "tf32" keeps 10 bits, "tf32x3" makes three
products of such halves, "bf16" keeps 7 bits.
"""

_LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Verdict:
    """Yes if there is no reason against."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


@functools.cache
def available() -> Verdict:
    """Whether Triton is here, and an NVIDIA GPU of the Ampere generation or later to run it on.

    With TRITON_INTERPRET=1 in the environment, Triton's interpreter serves in place of the GPU.
    Asked once per process.
    """
    if importlib.util.find_spec("triton") is None:
        return Verdict("Triton is not installed: `pip install triton`, or torch for CUDA.")
    if interpreted():
        return Verdict()
    if torch.version.hip is not None:
        return Verdict("the kernels have not been tried on AMD GPUs.")
    if not torch.cuda.is_available():
        return Verdict("torch sees no CUDA device.")
    found = torch.cuda.get_device_capability()
    if found < _LEAST_CAPABILITY:
        return Verdict(f"the GPU's compute capability must be at least 8.0; it is {found}.")
    return Verdict()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, so also on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def placed(*tensors: Tensor) -> Verdict:
    """Whether all tensors lie on one device that kernels can reach, with any number of entries."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return Verdict(
            f"all tensors must lie on one device; they lie on {sorted(map(str, devices))}."
        )
    (device,) = devices
    if device.type != "cuda" and not interpreted():
        return Verdict(f"the tensors must lie on a CUDA device; they lie on {device}.")
    if any(tensor.numel() == 0 for tensor in tensors):
        return Verdict("tensors must not be empty.")
    return Verdict()


def require(name: str, *verdicts: Verdict) -> None:
    """Raises if one of the verdicts is no.

    Args:
        name: The function that was called.
        *verdicts: All of these must be yes.

    Raises:
        ValueError: With the first reason.
    """
    for verdict in verdicts:
        if not verdict:
            raise ValueError(
                f"`{name}` of the Triton kernels cannot do this: {verdict.reason} Ask `available` "
                "and `supports` first, or call the operation in `robustssm.ops`, which does."
            )


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int, **constants: bool | int | str
) -> None:
    """Runs a kernel on the device of its first argument, a tensor."""
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[grid](*arguments, **constants)


def blocks(size: int, tile: int) -> int:
    """Tiles that cover `size`."""
    return -(-size // tile)


def power_of_two(size: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, size - 1).bit_length()
