"""Shapes that cross function boundaries, and what the rest of the house may ask of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

Inputs = Float[Tensor, "batch ..."]
Labels = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch classes"]
Tokens = Float[Tensor, "batch length d_model"]
Token = Float[Tensor, "batch d_model"]
Scalar = Float[Tensor, ""]
PerExample = Float[Tensor, " batch"]
Bounds = tuple[float, float]

LogitsFn = Callable[[Tensor], Tensor]
"""Maps inputs (batch, ...) to unnormalised scores (batch, classes)."""


@runtime_checkable
class Classifier(Protocol):
    """What training, attacks and evaluation need: any `nn.Module` from inputs to logits is one."""

    training: bool

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps inputs (batch, ...) to logits (batch, classes)."""
        ...

    def train(self, mode: bool = True) -> object:
        """Switches to train (or eval) mode."""
        ...


@runtime_checkable
class Freezable(Protocol):
    """A model that can prepare, once per attack, whatever depends on parameters alone."""

    def frozen(self) -> AbstractContextManager[object]:
        """A context in which parameters neither change nor need a gradient; caches die with it."""
        ...


@runtime_checkable
class Shareable(Protocol):
    """A model that can let several forward passes share what depends on parameters alone."""

    def shared(self) -> AbstractContextManager[object]:
        """A context for forward passes that are differentiated together, once."""
        ...


@runtime_checkable
class SplitClassifier(Protocol):
    """A model whose forward is `classify(embed(x))`: inputs to tokens, tokens to logits."""

    def embed(self, x: Tensor) -> Tensor:
        """Maps inputs (batch, ...) to tokens (batch, length, d_model)."""
        ...

    def classify(self, tokens: Tensor) -> Tensor:
        """Maps tokens (batch, length, d_model) to logits (batch, classes)."""
        ...
