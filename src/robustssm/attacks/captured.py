"""The inner loop of an attack on a GPU as one CUDA graph, and the precision it runs in.

Checked with a stand-in for CUDA; not yet run on a GPU.

A step of PGD launches a few hundred small kernels, and on a fast GPU the host cannot launch them as
quickly as they run. A graph is recorded once and then launched whole. What it records is addresses
and launches, so these must hold:

- `step` and `around` do everything on the device, always in the same way: nothing asks the host
  (`.item()`, `if tensor`, printing), nothing is drawn at random, no shape changes. Where torch
  notices, it refuses to record, and the plain loop runs instead: the answer is then the same, and
  `CapturedLoop.reason` says why.
- What differs from call to call is an argument: points, and what is fixed during a call (labels,
  inputs, bounds). Arguments are copied into the graph's own tensors. A tensor that `step` reads
  otherwise is read again at its address: parameters may change in place, as optimisers change them,
  but not be replaced. Parameters and buffers are checked by address, shape and dtype before every
  replay, and recorded again where they moved; other captured variables cannot be checked.
- Whatever is prepared from parameters (`frozen()`) or cast from them (autocast) is made within
  `around`, which is entered while recording: so it is part of the graph, lies in the graph's own
  memory, and is made anew in every replay. Prepared before, it would be the parameters' of the day
  of the recording.
- Python runs while recording only: counters of calls, deadlines and hooks see one warm-up and one
  recording, and nothing of the replays.

Points found in less than float32 are a search result, not a judgement: whoever asked verifies the
point they are given, in float32, before counting it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

Step = Callable[..., Tensor]
"""Maps points, and what is fixed during a call, to the next points of the same shape and dtype."""

InnerPrecision = Literal["fp32", "tf32", "bf16"]
"""Of the inner loop alone; see `inner_precision`."""


@dataclass(frozen=True)
class _Recording:
    """A graph, what it reads, where it writes, and the tensors that must lie where they lay."""

    graph: Any
    inputs: tuple[Tensor, ...]
    output: Tensor
    addresses: tuple[Hashable, ...]


class CapturedLoop:
    """points <- step(points, *fixed), several times: one graph launch where CUDA allows.

    One recording is kept for each combination of shapes, dtypes and `key`; the oldest go first.
    """

    def __init__(
        self,
        step: Step,
        steps: int,
        *,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        watched: Callable[[], Iterable[Tensor]] = tuple,
        keep: int = 4,
        device_type: str = "cuda",
        cuda: Any = torch.cuda,
    ):
        """Nothing is recorded yet.

        Args:
            step: The step; see the conditions above.
            steps: How many make one call, at least 1.
            around: Context of the steps of one call, entered anew for each call that is not a
                replay: `frozen()` of the model, `inner_precision`.
            watched: Gives the tensors that `step` reads otherwise: parameters and buffers.
            keep: Most recordings; each holds the memory of a whole call.
            device_type: Of points that can be recorded.
            cuda: What records; tests put another in its place.
        """
        self.step, self.steps = step, steps
        self.around, self.watched = around, watched
        self.keep, self.device_type, self.cuda = keep, device_type, cuda
        self.reason = ""
        """Why the last call was a plain loop; empty if it was a replay."""
        self._recordings: dict[Hashable, _Recording] = {}
        self._refused: dict[Hashable, str] = {}

    def __call__(
        self, points: Shaped[Tensor, "..."], *fixed: Tensor, key: Hashable = None
    ) -> Shaped[Tensor, "..."]:
        """The points after all steps, a tensor of their own; gradients are not recorded.

        Args:
            points: Where to start; they are left as they are.
            *fixed: Further arguments of `step`.
            key: What else a recording depends on: training mode, precision, the objective's value.
        """
        inputs = (points, *fixed)
        modes = torch.is_grad_enabled(), torch.backends.cuda.matmul.fp32_precision
        place = (key, modes, *(_place(x)[1:] for x in inputs))
        self.reason = self._refusal(place, inputs)
        if self.reason:
            return self._loop(points, fixed)
        watched = tuple(_place(x) for x in self.watched())
        recording = self._recordings.get(place)
        if recording is None or recording.addresses != watched:
            self._recordings.pop(place, None)
            try:
                recording = self._record(inputs, watched)
            except RuntimeError as error:  # what torch raises where something cannot be recorded
                self.reason = f"the loop could not be recorded: {_first_line(error)}"
                self._refused[place] = self.reason
                return self._loop(points, fixed)
            while len(self._recordings) >= self.keep:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[place] = recording
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return recording.output.clone()

    def plain(self, points: Shaped[Tensor, "..."], *fixed: Tensor) -> Shaped[Tensor, "..."]:
        """The same without recording or replaying anything; arguments as those of the call."""
        self.reason = "a plain loop was asked for."
        return self._loop(points, fixed)

    def forget(self) -> None:
        """Gives all recordings and their memory back, and lets what was refused be tried again."""
        self._recordings.clear()
        self._refused.clear()

    def _refusal(self, place: Hashable, inputs: tuple[Tensor, ...]) -> str:
        elsewhere = {x.device.type for x in inputs} - {self.device_type}
        if elsewhere:
            return (
                f"only {self.device_type} tensors can be recorded; some lie on {elsewhere.pop()}."
            )
        if any(x.requires_grad for x in inputs):
            return "a replay has no gradient, and an argument asks for one: detach it."
        if torch.is_autocast_enabled(self.device_type) and torch.is_autocast_cache_enabled():
            return "autocast would keep casts of parameters from before: enter it within `around`."
        return self._refused.get(place, "")

    def _loop(self, points: Tensor, fixed: Sequence[Tensor]) -> Tensor:
        start = points
        with self.around():
            for _ in range(self.steps):
                points = self.step(points, *fixed)
        return points.clone() if points is start else points

    def _record(self, inputs: tuple[Tensor, ...], addresses: tuple[Hashable, ...]) -> _Recording:
        """Warms up, so that libraries and allocators have what they need, then records."""
        static = tuple(x.detach().clone() for x in inputs)
        points, *fixed = static
        stream, current = self.cuda.Stream(), self.cuda.current_stream()
        stream.wait_stream(current)
        with self.cuda.stream(stream):
            end = self._loop(points, fixed)
        current.wait_stream(stream)
        if (end.shape, end.dtype, end.device) != (points.shape, points.dtype, points.device):
            raise RuntimeError(
                "`step` must keep shape, dtype and device of the points; it made "
                f"{tuple(end.shape)}, {end.dtype} of {tuple(points.shape)}, {points.dtype}."
            )
        del end
        graph = self.cuda.CUDAGraph()
        try:
            with self.cuda.graph(graph):
                output = self._loop(points, fixed)
        finally:
            self.cuda.set_stream(current)  # a recording that fails leaves its own
        return _Recording(graph, static, output.detach(), addresses)


def _first_line(error: BaseException) -> str:
    """What went wrong first: ending a recording that failed fails as well."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _place(x: Tensor) -> tuple[Hashable, ...]:
    """Where a tensor lies, and how: the address first."""
    return (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, x.device)


@contextmanager
def inner_precision(kind: InnerPrecision, device_type: str = "cuda") -> Iterator[None]:
    """Runs the enclosed lines in a precision, then restores what was there.

    The point that a search in "tf32" or "bf16" finds must be verified in float32 by the caller:
    only that says whether it is adversarial.

    Args:
        kind: "fp32": all of float32, without autocast. "tf32": the same, but matrix products may
            keep 10 bits of their operands, where the GPU has that. "bf16": autocast.
        device_type: Whose autocast.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    changes = kind != "bf16" and (kind == "tf32") != (before == "tf32")
    if changes:
        # The older switch sets the newer one as well; the other way round, reading it is an error.
        matmul.allow_tf32 = kind == "tf32"
    try:
        with _autocast(kind == "bf16", device_type):
            yield
    finally:
        if changes:
            matmul.allow_tf32 = before == "tf32"
            matmul.fp32_precision = before


def _autocast(enabled: bool, device_type: str) -> AbstractContextManager[object]:
    if enabled == torch.is_autocast_enabled(device_type) is False:
        return nullcontext()  # where there is no such device, torch warns even of switching off
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)
