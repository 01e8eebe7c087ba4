"""Lets somebody see what goes into and comes out of the parts of a model, without touching it.

Layers report their parts with `observe`; while nobody listens, that costs one look-up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

Part = Literal[
    "layer",
    "projection",
    "convolution",
    "ssm",
    "ads",
    "attention",
    "gate",
    "activation",
    "linear",
    "feed_forward",
    "residual",
    "norm",
]
"""Kinds of parts: "layer" is a whole sequence layer, the others are inside or around one."""

Listener = Callable[[nn.Module, Part, Tensor, Tensor], None]
"""Is told the module that reports, the part, and the sequences before and after it."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def observing(listener: Listener) -> Iterator[None]:
    """Tells `listener` of every part that runs in this thread while the context lasts.

    Models then run part by part: what is otherwise one compiled operation is not.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def observed() -> bool:
    """Whether somebody listens."""
    return _listener.get() is not None


def observe(
    module: nn.Module,
    part: Part,
    before: Float[Tensor, "batch length _"],
    after: Float[Tensor, "batch length _"],
) -> Float[Tensor, "batch length _"]:
    """Reports a part, if somebody listens; returns `after`.

    Args:
        module: Whose part it is.
        part: Its kind.
        before: What it reads, (batch, length, channels).
        after: What it makes of that, (batch, length, other channels).
    """
    listener = _listener.get()
    if listener is not None:
        listener(module, part, before, after)
    return after


@contextmanager
def backwards() -> Iterator[None]:
    """Reports sequences with their time reversed: for layers that run on reversed sequences."""
    listener = _listener.get()
    if listener is None:
        yield
        return

    def turned(module: nn.Module, part: Part, before: Tensor, after: Tensor) -> None:
        listener(module, part, before.flip(1), after.flip(1))

    with observing(turned):
        yield
