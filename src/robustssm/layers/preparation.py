"""Work that depends on parameters alone, done once while they stand still."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Prepared = TypeVar("Prepared")


class Preparing(nn.Module):
    """A module that, inside `frozen()`, makes each thing it prepares only once."""

    _kept: dict[Hashable, object] | None = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it lasts, parameters must not change; what they lead to needs no gradient."""
        before = self._kept
        self._kept = {} if before is None else before
        try:
            yield
        finally:
            self._kept = before

    def _prepared(self, key: Hashable, make: Callable[[], Prepared]) -> Prepared:
        """What `make` returns; if frozen, made once for each key, without gradient."""
        if self._kept is None:
            return make()
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = make()
        return self._kept[key]  # pyright: ignore[reportReturnType]
