"""Work that depends on parameters alone, done once while they stand still."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Prepared = TypeVar("Prepared")


class Preparing(nn.Module):
    """A module that makes each thing it prepares only once inside `frozen()` or `shared()`."""

    _kept: "_Kept | None" = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it lasts, what parameters lead to is made once and gets no gradient.

        A parameter that is changed in place or replaced meanwhile is noticed, and what was made of
        it is made anew; a change through `parameter.data` is not.
        """
        with self._keeping(_Kept(self._sources(), gradients=False)):
            yield

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While it lasts, several forward passes have one graph from parameters to what they make.

        For losses of more than one pass that are differentiated once. Inside `frozen()` it adds
        nothing.
        """
        with self._keeping(_Kept(self._sources(), gradients=True)):
            yield

    @contextmanager
    def _keeping(self, kept: "_Kept") -> Iterator[None]:
        before = self._kept
        if before is None or (before.gradients and not kept.gradients):
            self._kept = kept
        try:
            yield
        finally:
            self._kept = before

    def _prepared(self, key: Hashable, make: Callable[[], Prepared]) -> Prepared:
        """What `make` returns; if frozen, made once for each key, without gradient."""
        if self._kept is None or (self._kept.gradients and not torch.is_grad_enabled()):
            return make()
        with self._kept.lock:
            return self._kept.get(key, make, self._stamp())

    @property
    def _is_frozen(self) -> bool:
        """Whether this is inside `frozen()`, so that parameters need no gradient."""
        return self._kept is not None and not self._kept.gradients

    def _sources(self) -> list[Mapping[str, Tensor | None]]:
        """Where the tensors stand that what is prepared is made of: the module's own."""
        return [self._parameters, self._buffers]

    def _stamp(self) -> tuple[object, ...]:
        """Changes when one of these tensors does."""
        assert self._kept is not None
        tensors = (t for source in self._kept.sources for t in source.values())
        return tuple(None if t is None else _version(t) for t in tensors)


class _Kept:
    """What was made, and of which parameters."""

    def __init__(self, sources: list[Mapping[str, Tensor | None]], *, gradients: bool):
        self.sources = sources
        self.gradients = gradients
        self.lock = threading.RLock()  # parts of a batch may run on threads
        self.stamp: tuple[object, ...] | None = None
        self.made: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], Prepared], stamp: tuple) -> Prepared:
        if stamp != self.stamp:
            self.made.clear()
            self.stamp = stamp
        if key not in self.made:
            with torch.set_grad_enabled(self.gradients):
                self.made[key] = make()
        return self.made[key]  # pyright: ignore[reportReturnType]


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
