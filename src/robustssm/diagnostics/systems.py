"""The layers of a model as state space systems: what drives each, in float64 and apart from it."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustssm.core.errors import Inapplicable
from robustssm.core.types import Inputs, Tokens
from robustssm.diagnostics.capture import capture, layers_of
from robustssm.layers.base import SequenceLayer
from robustssm.layers.mamba import Mamba
from robustssm.ops.interval_scan import SelectiveSystem
from robustssm.ops.recurrence import Recurrence


@dataclass(frozen=True, kw_only=True, eq=False)
class Driven:
    """A system and the sequence that drives it."""

    recurrence: Recurrence
    u: Float[Tensor, "batch length channels"]

    @property
    def varies(self) -> bool:
        """Whether the system follows its input, so that no one system serves all."""
        return not all(
            way.time_invariant and way.input_independent for way in self.recurrence.directions
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerSystem:
    """A float64 copy of one layer, whose parameters need no gradient."""

    label: str
    """Its number, as on the axes of what probes find."""
    kind: str
    """Name of its class."""
    module: SequenceLayer
    driven: Driven | None
    """At the inputs that it was asked for; None if it has no recurrence."""
    reason: str
    """Why it has none; a whole sentence, or empty."""

    def at(self, before: Tokens) -> Driven:
        """The system that the layer runs on another input; for layers that have one."""
        with torch.no_grad():
            found = self.module.recurrence(before.double())
        assert found is not None
        return Driven(recurrence=found, u=before.double() if found.u is None else found.u)

    def at_length(self, length: int) -> Driven:
        """The time-invariant system at another length of the sequence; it must be the same one.

        Raises:
            Inapplicable: If the system depends on the length (DSS), or on its input (Mamba).
        """
        assert self.driven is not None
        here = self.driven.u.shape[1]
        if length == here:
            return self.driven
        zeros = self.driven.u.new_zeros(1, length, self.module.d_model)
        there = None if self.driven.varies else self.at(zeros)
        if there is None or not same(self.driven.recurrence, there.recurrence):
            depends = "follows its input" if self.driven.varies else "has taps that depend on it"
            raise Inapplicable(
                f"{self.kind} (layer {self.label}) cannot be looked at over {length} steps where "
                f"its sequences have {here}: it {depends}. Leave the length out."
            )
        return there

    def selective(self) -> SelectiveSystem | None:
        """The scan with the maps that choose its parameters, for layers known to have them."""
        layer = self.module
        if not isinstance(layer, Mamba):
            return None
        return SelectiveSystem(
            select=layer.x_proj.weight,
            steps=layer.dt_proj.weight,
            bias=layer.dt_proj.bias,
            A=-torch.exp(layer.A_log),
            D=layer.D,
            discretization=layer.config.discretization,
        )


def layer_inputs(model: nn.Module, x: Inputs) -> dict[int, tuple[Tensor, Tensor]]:
    """What every layer reads and writes when the model runs on `x`, by its number.

    Raises:
        Inapplicable: If there are no layers, or one runs where nothing reports it.
    """
    names = list(layers_of(model))
    found = {
        a.place.layer: (a.before, a.after)
        for a in capture(model, x)
        if a.place.part == "layer" and a.place.occurrence == 0
    }
    silent = [name for number, name in enumerate(names) if number not in found]
    if silent:
        raise Inapplicable(
            "Systems of layers need what each layer reads, which blocks report "
            f"(robustssm.models.block.Block); nothing reports {', '.join(silent)}. Put each layer "
            "into a block, or call `core.observation.observe` with part 'layer' around it."
        )
    return found


def systems_of(model: nn.Module, inputs: dict[int, tuple[Tensor, Tensor]]) -> list[LayerSystem]:
    """Every layer as a system, in the order of the model, at what it reads according to `inputs`.

    Raises:
        Inapplicable: If no layer has a recurrence; names the layers found.
    """
    found = [
        _system(number, layer, inputs[number][0].double())
        for number, layer in enumerate(layers_of(model).values())
    ]
    if all(system.driven is None for system in found):
        kinds = ", ".join(sorted({system.kind for system in found}))
        reasons = " ".join(dict.fromkeys(s.reason for s in found))
        raise Inapplicable(
            f"This probe looks at recurrences, and no layer has one; found {kinds}. {reasons} Use "
            "`FeatureShift`, which needs none."
        )
    return found


def same(one: Recurrence, other: Recurrence) -> bool:
    """Whether both are the same time-invariant system, entry by entry."""
    return len(one.directions) == len(other.directions) and all(
        (M := getattr(a, name)).shape == (N := getattr(b, name)).shape and torch.equal(M, N)
        for a, b in zip(one.directions, other.directions, strict=True)
        for name in ("A", "B", "C", "D")
    )


def _system(number: int, layer: SequenceLayer, before: Tensor) -> LayerSystem:
    module = copy.deepcopy(layer).double().eval().requires_grad_(False)
    kind, driven, reason = type(layer).__name__, None, ""
    try:
        found = module.recurrence(before)
        if found is None:
            reason = f"{kind} has no state."
        else:
            driven = Driven(recurrence=found, u=before if found.u is None else found.u)
    except Inapplicable as error:
        reason = str(error)
    return LayerSystem(label=str(number), kind=kind, module=module, driven=driven, reason=reason)
