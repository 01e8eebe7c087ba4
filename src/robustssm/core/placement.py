"""Where a model runs, in which precision and in how many processes: a thin layer over Fabric."""

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.errors import unknown, violation

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


PATIENCE = timedelta(hours=12)
"""How long a process waits for the others. The first one measures and writes while they wait, so it
must be long; who died is noticed at once, by a closed connection or by whoever started them."""


def in_processes(
    function: Callable[..., None],
    *arguments: object,
    device: str,
    processes: int,
    nodes: int = 1,
    precision: Precision = "32-true",
) -> None:
    """Runs `function(fabric, *arguments)` in several processes, one per device.

    Where torchrun or SLURM has started this process as one of several, the function runs in it;
    else the processes of this node are started here, and the call returns when all have ended.

    Args:
        function: Importable by name, as are the arguments' types: processes are new ones.
        *arguments: For the function; `fabric.global_rank` and `fabric.world_size` tell who it is.
        device: "auto", "cpu", "cuda" or "mps"; on a CPU the processes share it.
        processes: How many per node; at least 2, or 1 on several nodes.
        nodes: How many nodes; each must run this.
        precision: As of `Placement`.
    """
    with warnings.catch_warnings(), _environment_kept():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        method = "popen" if started_outside() else "spawn"
        fabric = Fabric(
            accelerator=device,
            devices=processes,
            num_nodes=nodes,
            strategy=DDPStrategy(start_method=method, timeout=PATIENCE),
            precision=precision,
        )
        launch: Callable[..., None] = fabric.launch
        launch(_in_one, function, *arguments)


def _in_one(fabric: Any, function: Callable[..., None], *arguments: object) -> None:
    """In each process: runs the function and, before the interpreter ends, leaves the others.

    A thread of gloo drops the tensors of the last exchange, for which it needs the interpreter;
    it aborts the process if that is gone. Fabric takes care of this for NCCL alone.
    """
    atexit.unregister(_leave)  # where others started this process, it may run several in turn
    atexit.register(_leave)
    function(fabric, *arguments)


def _leave() -> None:
    """Ends the connection to the other processes, and the threads that serve it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def started_outside() -> bool:
    """Whether torchrun or SLURM has started this process as one of several."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Takes back the port that Fabric leaves in the environment: the next launch needs its own."""
    before = os.environ.get("MASTER_PORT")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MASTER_PORT", None)


def check_devices(device: str, *, devices: int, nodes: int) -> None:
    """Refuses several processes where a device was named, or devices that are not there.

    Args:
        device: As of `Placement`.
        devices: Per node.
        nodes: How many.

    Raises:
        ValueError: If they cannot be had.
    """
    if devices < 1 or nodes < 1:
        raise ValueError(violation("`devices` and `nodes`", "be at least 1", f"{devices}, {nodes}"))
    if devices * nodes == 1:
        return
    kind, _, index = device.partition(":")
    if index or kind == "mps":
        raise ValueError(
            violation(
                "`device`",
                f"be a kind of which there are {devices} where a run has several processes",
                f"'{device}'",
                "Use --device cuda, cpu or auto.",
            )
        )
    there = torch.cuda.device_count()
    if there < devices and (kind == "cuda" or (kind == "auto" and there)):
        raise ValueError(
            violation(
                "`devices`",
                "be no more than a node has",
                f"{devices} where torch sees {there} CUDA devices",
                "Lower --devices, or let processes share a CPU with --device cpu.",
            )
        )


class Placement:
    """The device of this process, a precision, and which of how many processes this one is."""

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

    @classmethod
    def among(cls, fabric: Any, precision: Precision) -> "Placement":
        """That of one of the processes that `in_processes` started.

        Args:
            fabric: What the process was given.
            precision: That of all of them.
        """
        placement = cls.__new__(cls)
        placement.fabric, placement.precision = fabric, precision
        return placement

    @property
    def rank(self) -> int:
        """The number of this process; 0 writes and measures."""
        return self.fabric.global_rank

    @property
    def processes(self) -> int:
        """How many processes share every batch."""
        return self.fabric.world_size

    def total(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum over all processes, the same bits in each; every process must ask for it."""
        if self.processes == 1:
            return tensor
        return self.fabric.all_reduce(tensor, reduce_op="sum")  # pyright: ignore[reportReturnType]

    def told(self, value: Any) -> Any:
        """The value that process 0 has; every process must ask for it, and waits."""
        return value if self.processes == 1 else self.fabric.broadcast(value, src=0)

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
        many = f"{self.processes} processes: " if self.processes > 1 else ""
        if self.device.type == "cuda":
            return f"{many}{torch.cuda.get_device_name(self.device)} ({self.device})"
        return f"{many}{self.device.type}, {torch.get_num_threads()} threads"
