"""The published suites: AutoAttack in its versions, and its first half for a quick look."""

from abc import abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustssm.attacks.access import Access
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.base import Attack, Passes
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.fab import FAB, FABTargeted
from robustssm.attacks.region import Region
from robustssm.attacks.restarts import Found
from robustssm.attacks.square import Square
from robustssm.attacks.threat import Threat
from robustssm.core.config import register, settings
from robustssm.core.errors import unknown
from robustssm.core.rng import Noise
from robustssm.ops.balls import Norm
from robustssm.ops.divergence import dlr_defined

_TARGETS = 9
_QUERIES = 5000
_DRAWS = 20


class Suite(Attack):
    """A published sequence of attacks, which depends on the problem: `resolve` it, or just run it.

    Where the problem forces it to differ from what was published, the result says so and is not
    called by the published name.
    """

    @abstractmethod
    def stages(self, *, norm: Norm, num_classes: int, band: bool = False) -> tuple[Attack, ...]:
        """The attacks for a norm and a number of classes, in order."""

    @abstractmethod
    def title(self, *, deviates: bool) -> str:
        """How results are called."""

    @property
    def draws(self) -> int:
        """Passes whose mean prediction counts."""
        return 1

    def resolve(
        self, threat: Threat, *, num_classes: int, shape: tuple[int, ...], masked: bool = False
    ) -> Ensemble:
        """The suite for one problem.

        Args:
            threat: What the adversary may do.
            num_classes: Of the model, at least 2.
            shape: Of one example.
            masked: Whether a mask restricts what may be touched.
        """
        stages = self.stages(
            norm=threat.norm, num_classes=num_classes, band=threat.band is not None
        )
        said = _deviations(stages, threat, num_classes, shape, masked)
        return Ensemble(
            stages=stages,
            title=self.title(deviates=bool(said)),
            deviations=said,
            draws=self.draws,
        )

    def passes(self, num_classes: int) -> Passes | None:
        """As under linf."""
        stages = self.stages(norm="linf", num_classes=num_classes)
        return Ensemble(stages=stages).passes(num_classes)

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Found:
        """Asks the model for its number of classes, then runs the stages."""
        if not len(x) or region.eps == 0:
            nothing = torch.zeros_like(y, dtype=torch.bool)
            return Found(x, x.new_zeros(len(x)), nothing)
        classes = model.logits(x[:1]).shape[1]
        stages = self.stages(norm=region.norm, num_classes=classes, band=region.band is not None)
        return Ensemble(stages=stages).perturb(model, x, y, region=region, noise=noise)


@register("autoattack")
@settings
class AutoAttack(Suite):
    """AutoAttack: "standard" for a number to report, "plus" with more runs, "rand" for randomness.

    standard: APGD on the cross-entropy, APGD-T on 9 targets, FAB-T on 9 targets, Square with 5,000
    queries; under l1 APGD runs 5 times, APGD-T on 5 targets, both from larger radii. plus: APGD on
    cross-entropy and on DLR and FAB, 5 runs each, then Square, APGD-T, FAB-T. rand: APGD on both
    losses, gradients and predictions averaged over 20 passes.

    Source: croce2020reliable, section 5; under l1, croce2021mind, section 5.
    """

    version: Literal["standard", "plus", "rand"] = "standard"

    @property
    def label(self) -> str:
        """As published: "autoattack_standard"."""
        return self.title(deviates=False)

    @property
    def draws(self) -> int:
        """20 where the model is random."""
        return _DRAWS if self.version == "rand" else 1

    def title(self, *, deviates: bool) -> str:
        """Never "autoattack_standard" for what is not quite that: then "autoattack_adapted"."""
        if self.version == "standard":
            return "autoattack_adapted" if deviates else "autoattack_standard"
        return f"autoattack_{self.version}" + ("_adapted" if deviates else "")

    def stages(self, *, norm: Norm, num_classes: int, band: bool = False) -> tuple[Attack, ...]:
        """The attacks; without FAB where perturbations live in a band."""
        large = norm == "l1"
        if self.version == "rand":
            return (
                APGD(draws=_DRAWS, large_eps=large),
                APGD(loss="dlr", draws=_DRAWS, large_eps=large),
            )
        targeted = _targeted(norm, num_classes)
        fab_t = FABTargeted(targets=min(_TARGETS, num_classes - 1))
        square = Square(queries=_QUERIES)
        if self.version == "standard":
            ce = APGD(restarts=5 if large else 1, large_eps=large)
            every = (ce, targeted, fab_t, square)
        else:
            ce = APGD(restarts=5, large_eps=large)
            dlr = APGD(loss="dlr", restarts=5, large_eps=large)
            every = (ce, dlr, FAB(restarts=5), square, targeted, fab_t)
        return tuple(a for a in every if not (band and isinstance(a, FAB | FABTargeted)))

    @classmethod
    def samples(cls) -> tuple["Attack", ...]:
        """Every version; the contract tests leave suites out, as each stage is tested by itself."""
        return tuple(cls(version=version) for version in ("standard", "plus", "rand"))


@register("quick")
@settings
class Quick(Suite):
    """The first two stages of AutoAttack, APGD-CE and APGD-T: an upper bound, for a first look.

    Source: croce2020reliable, section 5, cut short.
    """

    @property
    def label(self) -> str:
        """Its own name: it is not AutoAttack."""
        return self.name

    def title(self, *, deviates: bool) -> str:
        """The same in any case."""
        return self.name

    def stages(self, *, norm: Norm, num_classes: int, band: bool = False) -> tuple[Attack, ...]:
        """APGD on the cross-entropy, then on targets."""
        large = norm == "l1"
        ce = APGD(restarts=5 if large else 1, large_eps=large)
        return ce, _targeted(norm, num_classes)


SUITES = ("autoattack_standard", "autoattack_plus", "autoattack_rand", "quick")
"""Names of suites, for the command line."""


def suite(name: str) -> Suite:
    """The suite of that name, one of `SUITES`.

    Raises:
        ValueError: If there is none.
    """
    suites: dict[str, Suite] = {
        "autoattack_standard": AutoAttack(),
        "autoattack_plus": AutoAttack(version="plus"),
        "autoattack_rand": AutoAttack(version="rand"),
        "quick": Quick(),
    }
    if name not in suites:
        raise ValueError(unknown("suite", name, SUITES))
    return suites[name]


def _targeted(norm: Norm, num_classes: int) -> APGDTargeted:
    large = norm == "l1"
    return APGDTargeted(targets=min(5 if large else _TARGETS, num_classes - 1), large_eps=large)


def _deviations(
    stages: tuple[Attack, ...],
    threat: Threat,
    num_classes: int,
    shape: tuple[int, ...],
    masked: bool,
) -> tuple[str, ...]:
    said = []
    targeted = any(isinstance(stage, APGDTargeted | FABTargeted) for stage in stages)
    if targeted and num_classes <= _TARGETS:
        said.append(
            f"{num_classes - 1} targets instead of {_TARGETS}, as there are {num_classes} classes"
        )
    undefined = [
        stage.label
        for stage in stages
        if (isinstance(stage, APGDTargeted) and not dlr_defined(num_classes, targeted=True))
        or (isinstance(stage, APGD) and stage.loss == "dlr" and not dlr_defined(num_classes))
    ]
    if undefined:
        said.append(
            f"the margin in place of DLR, which is not defined for {num_classes} classes, in "
            + ", ".join(undefined)
        )
    if len(shape) != 3 and any(isinstance(stage, Square) for stage in stages):
        said.append("Square moves windows of consecutive positions, as inputs are no images")
    if tuple(threat.bounds) != (0.0, 1.0):
        said.append(f"inputs in [{threat.bounds[0]:g}, {threat.bounds[1]:g}] instead of [0, 1]")
    if threat.restricted:
        said.append("the threat is restricted to part of the input")
    if masked:
        said.append("a mask restricts what may be touched")
    if threat.band is not None and targeted:
        said.append("FAB is left out, as it has no projection within a band of frequencies")
    return tuple(said)
