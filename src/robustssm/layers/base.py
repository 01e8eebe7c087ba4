"""What every layer is: a map between sequences, written twice."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.config import Named
from robustssm.core.rng import Noise
from robustssm.ops.recurrence import Recurrence

Role = Literal["dynamics", "gain", "norm", "weight"]
State = Any  # a tensor, or a tuple or dict of tensors: each layer's own


class LayerConfig(Named, ABC):
    """Settings of one layer: frozen, JSON-able, and all a recipe needs in order to name it."""

    kind: ClassVar[str] = "layer"

    @abstractmethod
    def build(self, *, d_model: int, length: int, noise: Noise) -> "SequenceLayer":
        """Makes the layer in float32 on the CPU.

        Args:
            d_model: Channels of the sequences it maps.
            length: Longest sequence it must accept (relative position tables are made this long).
            noise: Source of every initial draw.
        """

    @classmethod
    def samples(cls) -> tuple["LayerConfig", ...]:
        """Settings that the contract tests should try; the defaults if not overridden."""
        return (cls(),)


class SequenceLayer(nn.Module, ABC):
    """A map between sequences, written twice: once fast (`forward`), once plain (`reference`).

    `testing.check_layer` holds every registered layer to this: both forms agree in float64; rows
    of a batch never meet; every parameter receives a gradient; state dicts round-trip.
    """

    d_model: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape, device and dtype."""

    @abstractmethod
    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """The definition, as the paper writes it. Slow, obvious, and the oracle for `forward`."""

    @abstractmethod
    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence | None:
        """The inner h[t] = A[t] h[t-1] + B[t] u[t], y[t] = C[t] h[t] + D u[t], as run on `x`.

        The time axis has size 1 where A, B, C ignore the input. None: no state equation inside.
        """

    def roles(self) -> Mapping[str, Role]:
        """Parameter name to role, for optimiser settings; names left out are "weight"."""
        return {}


class CausalLayer(SequenceLayer, ABC):
    """A layer that can run step by step. `check_layer` adds: `y[:, t]` ignores `x[:, t+1:]`."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first input, on the device of the parameters."""

    @abstractmethod
    def step(
        self, x: Float[Tensor, "batch d_model"], state: State
    ) -> tuple[Float[Tensor, "batch d_model"], State]:
        """One time step, (batch, d_model) to (batch, d_model)."""

    @final
    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """`step` in a loop."""
        state = self.initial_state(len(x))
        outputs = []
        for token in x.unbind(1):
            y, state = self.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, 1)
