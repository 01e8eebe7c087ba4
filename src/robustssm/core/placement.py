"""Where a model runs and in which precision: a thin layer over Lightning Fabric."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustssm.core.errors import unknown

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
DEVICES = ("auto", "cpu", "cuda", "mps")


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Runs the enclosed lines with so many threads per operation on the CPU, then restores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_processes(
    function: Callable[..., None],
    *arguments: object,
    device: str,
    processes: int,
    precision: Precision = "32-true",
) -> None:
    """Runs `function(fabric, *arguments)` in several processes of one machine, one per device.

    Args:
        function: Importable by name, as are the arguments' types: processes are new ones.
        *arguments: For the function; `fabric.global_rank` and `fabric.world_size` tell who it is.
        device: "auto", "cpu", "cuda" or "mps"; on a CPU the processes share it.
        processes: How many, at least 2.
        precision: As of `Placement`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric

        fabric = Fabric(
            accelerator=device, devices=processes, strategy="ddp_spawn", precision=precision
        )
        fabric.launch(function, *arguments)


class Placement:
    """One device and one precision.

    Data parallelism over several devices and hosts is Fabric's as well; nothing above this class
    knows how many there are.
    """

    def __init__(self, device: str = "auto", precision: Precision = "32-true"):
        """Chooses the device.

        Args:
            device: "auto" (the best accelerator present), "cpu", "cuda" or "mps"; "cuda:1" names
                one.
            precision: Fabric's names; state dynamics stay in float32 whatever it is.

        Raises:
            ValueError: If there is no such device here.
        """
        kind, _, index = device.partition(":")
        if kind not in DEVICES or (index and not index.isdigit()):
            raise ValueError(unknown("device", device, DEVICES))
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "`device` must be present; got 'cuda', but torch sees no CUDA device. "
                "Use --device cpu or --device auto."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's hints about hardware it would rather have
            from lightning_fabric import Fabric

            devices = [int(index)] if index else 1
            self.fabric = Fabric(accelerator=kind, devices=devices, precision=precision)
        self.precision = precision

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    @property
    def scales_losses(self) -> bool:
        """Whether gradients are scaled (float16), so that infinite ones are routine."""
        return self.precision == "16-mixed"

    def setup(self, model: nn.Module) -> nn.Module:
        """Moves a model to the device."""
        return self.fabric.to_device(model)

    def setup_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Lets the optimiser's step go through the precision's loss scaling."""
        return self.fabric.setup_optimizers(optimizer)  # pyright: ignore[reportReturnType]

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forwards run in this precision."""
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of `loss` into the parameters."""
        self.fabric.backward(loss)

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        """Clips the gradient to 2-norm `max_norm` over all parameters; returns its norm before."""
        norm = self.fabric.clip_gradients(
            model,  # pyright: ignore[reportArgumentType]
            optimizer,
            max_norm=max_norm,
            error_if_nonfinite=False,
        )
        assert norm is not None
        return norm

    def state(self) -> dict[str, Any]:
        """What resuming must restore, as JSON: the loss scale of float16, else nothing."""
        return self.fabric.strategy.precision.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.fabric.strategy.precision.load_state_dict(state)

    def describe(self) -> str:
        """The device in words, for a run's record."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)} ({self.device})"
        return f"{self.device.type}, {torch.get_num_threads()} threads"
