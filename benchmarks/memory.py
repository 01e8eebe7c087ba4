"""Bytes that a forward pass keeps for its backward pass."""

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes kept for the backward pass of what `forward` returns, each storage counted once.

    Counted are tensors saved by torch's operations and by `save_for_backward`, inputs and
    parameters among them, and whatever a Function keeps on its context instead: tensors, arrays and
    buffers, also inside lists, tuples, dictionaries and objects.
    """
    storages: dict[int, int] = {}
    kept: list[object] = []  # alive until all is counted, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        _count(tensor, storages, kept)
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = forward()
    for node in _nodes(output):
        _count(getattr(node, "__dict__", {}), storages, kept)
    return sum(storages.values())


def _nodes(output: Tensor) -> list[object]:
    """Every node of the graph behind `output`."""
    found: dict[object, None] = {}
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found[node] = None
        waiting += [child for child, _ in node.next_functions]
    return list(found)


def _count(value: object, storages: dict[int, int], kept: list[object]) -> None:
    """Adds what `value` holds; the first to be seen at an address stands for all."""
    kept.append(value)
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        kept.append(storage)
        storages[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, np.ndarray):
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        storages[base.ctypes.data] = base.nbytes
    elif isinstance(value, ctypes.Array):
        storages[ctypes.addressof(value)] = ctypes.sizeof(value)
    elif isinstance(value, bytes | bytearray):
        storages[id(value)] = len(value)
    elif isinstance(value, dict):
        for item in value.values():
            _count(item, storages, kept)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _count(item, storages, kept)
    elif _plain_object(value) and not any(value is seen for seen in kept[:-1]):
        _count(vars(value), storages, kept)


def _plain_object(value: object) -> bool:
    """Whether it may hold data of its own: not a class, function or module."""
    return hasattr(value, "__dict__") and not callable(value) and type(value).__name__ != "module"
