"""A batch in parts: examples that fit the processor's caches, and several threads for them."""

import itertools
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.attacks.access import Access, frozen
from robustssm.attacks.base import Attack
from robustssm.attacks.threat import Threat
from robustssm.core.errors import OutOfTime
from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise
from robustssm.core.types import LogitsFn

CACHE_BYTES = 5 * 2**23
"""What a pass on a CPU may keep for its backward pass, to stay near the caches of its core."""

ROWS = (1, 128)
"""Fewest and most rows per pass on a CPU; every call has a price too.

Measured on two cores, PGD-10 on a batch of 128 at length 196, in ms for 2, 4, 8, 16 and 32 rows:
Mega (2.9 MB kept by each) 2078, 1416, 1256, 1258, 1215; Mamba (1.4 MB) 1333, 1036, 917, 837, 879;
S4 (0.3 MB, from 4 rows on) 262, 176, 156, 133. S4 at length 1,024, batch 16, for 1, 2, 4 and 8
rows: 600, 518, 491, 477. A small convolutional net took 0.7 of the time of 2,943 rows in pieces
of 128. At 64 tokens and width 32, in us per row for 84, 128 and 256 rows: Mamba 135, 123, 121; Mega
167, 166, 165; S4 23, 24, 27.
"""

SHARES = 4
"""A batch that is too large for one pass goes in a multiple of so many parts, for the threads."""

_fits: "weakref.WeakKeyDictionary[nn.Module, dict[object, int]]" = weakref.WeakKeyDictionary()


def attack_in_parts(
    attack: Attack,
    model: LogitsFn,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    *,
    threat: Threat,
    noise: Noise,
    clean: Float[Tensor, "batch classes"] | None = None,
) -> Float[Tensor, "batch ..."]:
    """What `attack(model, x, y, ...)` finds, part by part where that is faster.

    On a CPU, if the model may be called by several threads (`reentrant`), every thread takes parts
    through all steps of the attack, with one thread per operation: activations stay in its caches
    and no operation waits for the other threads. Examples are independent, so the result is that of
    the whole batch up to rounding, and the same bits for any number of threads.

    Args:
        attack: The attack.
        model: Maps (batch, ...) to logits (batch, classes), in the mode that the caller chose.
        x: Clean inputs (batch, ...).
        y: True classes (batch,).
        threat: As of the attack's call.
        noise: One stream per example.
        clean: Logits of `x`, if the caller has them.
    """

    def search(rows: slice) -> Tensor:
        known = None if clean is None else clean[rows]
        at = torch.arange(rows.start, rows.stop, device=x.device)
        return attack.search(
            model, x[rows], y[rows], threat=threat, noise=noise.select(at), clean=known
        ).points

    with frozen(model):
        parts = _parts(model, x)
        if len(parts) < 2:
            return attack.search(model, x, y, threat=threat, noise=noise, clean=clean).points
        threads = torch.get_num_threads()
        # Streams of examples are drawn from here, not by each thread for the whole batch.
        noise = noise.rows(len(x))
        with cpu_threads(1), ThreadPoolExecutor(threads) as pool:
            found = pool.map(search, parts) if threads > 1 else map(search, parts)
            return torch.cat(list(found))


def _parts(model: LogitsFn, x: Tensor) -> list[slice]:
    """Parts of equal length, the same for any number of threads; none if it must go whole."""
    if not isinstance(model, nn.Module) or not len(x):
        return []
    fits, key = _fits.setdefault(model, {}), (x.shape[1:], x.dtype)
    if len(x) <= fits.get(key, 0) or not reentrant(model):
        return []
    if key not in fits:
        fits[key] = rows_that_fit(Access(model), x)
    count = math.ceil(len(x) / fits[key])
    if count > 1:
        count = min(len(x), SHARES * math.ceil(count / SHARES))
    ends = [len(x) * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def rows_that_fit(access: Access, x: Float[Tensor, "batch ..."]) -> int:
    """Rows per pass, from the memory that one row keeps for its backward pass.

    Counted on two examples and one, so that it depends on model, shape and device alone: the same
    evaluation is cut into the same pieces.

    Args:
        access: The model.
        x: Examples, at least one.
    """
    two = torch.cat((x[:1], x[:1]))
    try:
        per_row = max(1, _kept(access, two) - _kept(access, x[:1]))
    except OutOfTime:
        raise
    except Exception:  # a kernel without a backward pass, in its own words: the preflight tells
        per_row = 1
    if x.is_cuda:
        most = torch.cuda.get_device_properties(x.device).total_memory // 4
        return max(1, min(2**16, most // per_row))
    return min(max(CACHE_BYTES // per_row, ROWS[0]), ROWS[1])


def reentrant(model: LogitsFn) -> bool:
    """Whether several threads may certainly call a model at once.

    True of modules on a CPU that are made of torch's and our own layers, without hooks: none of
    them changes anything in eval mode. Of other people's code nobody knows.
    """
    if not isinstance(model, nn.Module) or torch.is_autocast_enabled("cpu"):
        return False
    if any(p.device.type != "cpu" for p in model.parameters()):
        return False
    ours = ("torch.nn.modules.", f"{__name__.partition('.')[0]}.")
    return all(
        type(module).__module__.startswith(ours)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in model.modules()
    )


def _kept(access: Access, x: Tensor) -> int:
    """Bytes saved for a backward pass, every storage once."""
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        points = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            kept = access(points)
    del kept
    return sum(storages.values())
