"""PGD for a GPU: all steps recorded as one CUDA graph, in less precision if that is asked for."""

import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.attacks.access import Access, frozen
from robustssm.attacks.captured import CapturedLoop, InnerPrecision, inner_precision
from robustssm.attacks.pgd import PGD
from robustssm.attacks.region import Region
from robustssm.attacks.surrogate import Surrogate
from robustssm.core.config import register, settings
from robustssm.core.rng import Noise

_KEPT = 4  # loops of one model, each with the memory of what it recorded

_loops: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, CapturedLoop]]" = (
    weakref.WeakKeyDictionary()
)


@register("pgd_captured")
@settings
class PGDCaptured(PGD):
    """PGD that keeps the last iterate of one run, for training on a GPU.

    On a CUDA device its steps are one launch instead of some thousands, from the second batch with
    the same eps on; `attacks.captured` says what must hold. Where it does not, or elsewhere, the
    steps run one by one with the same result. Its point is not judged: training sees it in full
    precision, and an evaluation verifies it so. Checked on CPUs only; not yet run on a GPU.

    Source: madry2018towards, section 2.1 (the steps).
    """

    keep: Literal["best", "last"] = "last"
    precision: InnerPrecision = "fp32"
    """Of forward and backward passes while searching: "tf32" (GPUs), "bf16" (autocast)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "last" or self.restarts != 1:
            raise ValueError(
                "`PGDCaptured` must keep the last iterate of one run, as what is recorded looks at "
                f"no loss; got keep='{self.keep}', restarts={self.restarts}. Use PGD for these."
            )

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        """Runs the steps; the start is drawn from `noise.fork("start", 0)` as by PGD."""
        network = model.function
        if not isinstance(network, nn.Module) or not region.whole:
            return super().perturb(model, x, y, region=region, noise=noise)
        surrogate = Surrogate(self.loss, model, x, y)
        clean = () if surrogate.clean is None else (surrogate.clean,)
        key = self, region.norm, region.eps, x.device.type
        loops = _loops.setdefault(network, {})
        seen = key in loops
        if not seen:
            while len(loops) >= _KEPT:
                del loops[next(iter(loops))]
            loops[key] = self._loop(network, region, x.device.type)
        start = self._start(region, noise.fork("start", 0))
        fixed = region.x, y, region.low.expand_as(x), region.high.expand_as(x), *clean
        if seen:
            modes = tuple(part.training for part in network.modules())
            points = loops[key](start, *fixed, key=modes)
        else:  # eps may rise from batch to batch: what comes once is not worth a recording
            points = loops[key].plain(start, *fixed)
        model.ledger.forwards += self.steps * len(x)
        model.ledger.backwards += self.steps * len(x)
        return points

    def _loop(self, network: nn.Module, region: Region, device: str) -> CapturedLoop:
        """The loop of one model, which it does not keep alive."""
        model = weakref.ref(network)
        norm, eps = region.norm, region.eps

        def step(points: Tensor, x: Tensor, y: Tensor, low: Tensor, high: Tensor, *clean: Tensor):
            within = Region(x, norm, eps, low, high)
            access = Access(_alive(model))
            if clean:
                access = access.knowing(x, clean[0])
            _, gradient = Surrogate(self.loss, access, x, y).climb(points)
            move = self.step_size * eps * within.ascend(gradient)
            return within.project(points + move)

        def around() -> AbstractContextManager[object]:
            stack = ExitStack()
            stack.enter_context(_precision(self.precision, device))
            stack.enter_context(frozen(_alive(model)))
            return stack

        def watched() -> list[Tensor]:
            alive = _alive(model)
            return [*alive.parameters(), *alive.buffers()]

        return CapturedLoop(step, self.steps, around=around, watched=watched)

    @classmethod
    def samples(cls) -> tuple["PGDCaptured", ...]:
        """Starts, losses and precisions."""
        return (
            cls(steps=3),
            cls(steps=2, start="normal", loss="kl"),
            cls(steps=2, start="none", loss="margin", precision="bf16"),
        )


def _precision(kind: InnerPrecision, device: str) -> AbstractContextManager[object]:
    """TF32 is of GPUs alone; elsewhere its switch, which all threads share, stays as it is."""
    if kind == "tf32" and device != "cuda":
        return nullcontext()
    return nullcontext() if kind == "fp32" and device == "cpu" else inner_precision(kind, device)


def _alive(model: Callable[[], nn.Module | None]) -> nn.Module:
    found = model()
    assert found is not None
    return found
