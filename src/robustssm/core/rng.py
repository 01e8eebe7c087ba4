"""All randomness: counter-based streams that depend on a seed and a path, and on nothing else.

Bits come from SplitMix64 (steele2014splittable) in counter mode, computed in integer arithmetic on
the tensor's own device: draw number c of key k is mix(k + (c + 1) * GAMMA). Nothing is carried
between calls but a count, so resuming a run needs only its step number, and one stream per example
makes the outcome of an attack independent of batch size, order, device and of which examples an
earlier attack removed.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB

Path = tuple[str | int, ...]


class Noise:
    """A stream of random numbers, or one independent stream per example.

    Successive draws differ; `fork` gives independent children by name. A per-example noise draws
    row i of every tensor from the stream of example i.
    """

    def __init__(self, key: int, examples: Int[Tensor, " batch"] | None = None, path: Path = ()):
        """Use `Streams`; or `Noise(seed)` for a quick stream of your own.

        Args:
            key: Any integer; different keys are independent streams.
            examples: Identity of each example, (batch,) int64, for one stream per example.
            path: Names of the forks that led here.
        """
        self._key = key
        self._examples = examples
        self._path = path
        self._draws = 0

    @property
    def per_example(self) -> bool:
        """Whether every example has a stream of its own."""
        return self._examples is not None

    def fork(self, *path: str | int) -> "Noise":
        """An independent child stream; the same names always give the same child."""
        return Noise(self._key, self._examples, (*self._path, *path))

    def select(self, rows: Tensor) -> "Noise":
        """The streams of some examples only (boolean mask or indices); draws go on where they were.

        A noise that is shared by the batch has no rows and returns an equal noise.
        """
        chosen = None if self._examples is None else self._examples[rows.to(self._examples.device)]
        child = Noise(self._key, chosen, self._path)
        child._draws = self._draws
        return child

    def rows(self, count: int) -> "Noise":
        """This noise if it has one stream per example, else one stream for each of `count` rows."""
        if self._examples is not None:
            return self
        child = Noise(self._key, torch.arange(count), (*self._path, "rows"))
        child._draws = self._draws
        return child

    def spread(self, parts: Int[Tensor, " batch"]) -> "Noise":
        """A stream per (example, part): row i draws from part `parts[i]` of its own example.

        Rows that belong to one example (made by `select` with repeated indices) so get independent
        streams, the same whether the parts run together or one after the other.

        Raises:
            ValueError: If the batch shares one stream, which has no rows.
        """
        if self._examples is None:
            raise ValueError("Only a noise with one stream per example can be spread over parts.")
        keys = _mix(self._examples * _GAMMA + _mix((parts.to(self._examples.device) + 1) * _GAMMA))
        child = Noise(self._key, keys, (*self._path, "part"))
        child._draws = self._draws
        return child

    def uniform(
        self,
        *shape: int,
        low: float = 0.0,
        high: float = 1.0,
        like: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "..."]:
        """Draws from the uniform distribution on [low, high].

        Args:
            *shape: Shape of the result; left out, the shape of `like`.
            low: Lower end.
            high: Upper end.
            like: Tensor whose shape, dtype and device are taken where they are not given.
            dtype: Floating dtype of the result; float32 by default.
            device: Device of the result; the CPU by default.
        """
        unit, dtype = self._unit(shape, like, dtype, device)
        return (low + (high - low) * unit).to(dtype)

    def normal(
        self,
        *shape: int,
        std: float = 1.0,
        like: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "..."]:
        """Draws from the normal distribution of mean 0, deviation `std`; arguments as `uniform`."""
        unit, dtype = self._unit(shape, like, dtype, device)
        return (std * torch.special.ndtri(unit)).to(dtype)

    def integers(
        self, *shape: int, high: int, device: torch.device | str | None = None
    ) -> Int[Tensor, "..."]:
        """Draws int64 from 0, 1, ..., high - 1."""
        if high < 1:
            raise ValueError(f"`high` must be at least 1; got {high}. Draws are below it.")
        bits = self._bits(shape, torch.device(device or "cpu"))
        return ((bits >> 11) & ((1 << 53) - 1)) % high

    def signs(self, *shape: int, like: Tensor | None = None) -> Float[Tensor, "..."]:
        """Draws -1 or +1, with the shape, dtype and device of `like` where it is given."""
        unit, dtype = self._unit(shape, like, None, None)
        return torch.where(unit < 0.5, -1.0, 1.0).to(dtype)

    def permutation(self, n: int) -> Int[Tensor, " n"]:
        """A random order of 0, ..., n - 1, on the CPU."""
        if self.per_example:
            raise ValueError("A permutation is drawn from one stream, not from one per example.")
        return torch.argsort(self._bits((n,), torch.device("cpu")), stable=True)

    def seed(self) -> int:
        """One 63-bit integer, for software that seeds a generator of its own."""
        return _hash(self._key, *self._path, "seed", self._take()) & ((1 << 63) - 1)

    def _unit(
        self,
        shape: Sequence[int],
        like: Tensor | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> tuple[Tensor, torch.dtype]:
        """Float64 strictly inside (0, 1), and the dtype the caller wants."""
        if like is not None:
            shape = tuple(shape) or tuple(like.shape)
            dtype, device = dtype or like.dtype, device or like.device
        bits = self._bits(shape, torch.device(device or "cpu"))
        # 52 bits, not 53: top + 0.5 must be exact, or the largest would round up to 1.
        top = ((bits >> 12) & ((1 << 52) - 1)).double()
        return (top + 0.5) * 2.0**-52, dtype or torch.float32

    def _take(self) -> int:
        self._draws += 1
        return self._draws

    def _bits(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "..."]:
        key = _signed(_hash(self._key, *self._path, self._take()))
        if self._examples is None:
            count = math.prod(shape)
            counter = torch.arange(1, count + 1, device=device)
            return _mix(counter * _GAMMA + key).reshape(tuple(shape))
        rows = len(self._examples)
        if not shape or shape[0] != rows:
            raise ValueError(
                f"A noise of {rows} examples must draw {rows} rows; got shape {tuple(shape)}."
            )
        keys = _mix(_mix(self._examples.to(device) * _GAMMA + key) + key)
        counter = torch.arange(1, math.prod(shape[1:]) + 1, device=device)
        return _mix(keys[:, None] + counter * _GAMMA).reshape(tuple(shape))


class Streams:
    """Every stream of one run, from one seed."""

    def __init__(self, seed: int):
        """Made once per run, from its recipe's seed."""
        self.seed = seed

    def noise(self, *path: str | int) -> Noise:
        """The stream of that path: `streams.noise("order", epoch)`."""
        return Noise(_hash(self.seed, *path))

    def examples(self, *path: str | int, indices: Int[Tensor, " batch"]) -> Noise:
        """One stream per example: `streams.examples("train", step, indices=rows_of_the_data)`."""
        return Noise(_hash(self.seed, *path), indices)


@contextmanager
def global_stream(noise: Noise) -> Iterator[None]:
    """Seeds torch's global CPU generator from `noise` for the enclosed lines, then restores it.

    For other people's code that draws from it, such as the default initialisation of `nn.Linear`.
    """
    # Not torch.manual_seed, which would seed every accelerator as well, for good.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(noise.seed())
    try:
        yield
    finally:
        generator.set_state(state)


def published_numpy_stream(seed: int) -> np.random.RandomState:
    """The stream of `np.random.seed(seed)`, which numpy keeps unchanged for good.

    It exists only so that published numbers whose seeds are part of their setting can be computed
    again exactly. Everything of our own draws from `Noise`.
    """
    return np.random.RandomState(seed)


def _hash(*parts: str | int) -> int:
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(z: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finaliser; int64 wraps as uint64 does, and masks make right shifts logical."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))
