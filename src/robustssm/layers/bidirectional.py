"""Two causal layers, one of which reads the sequence backwards."""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import Inapplicable, violation
from robustssm.core.observation import backwards
from robustssm.core.rng import Noise
from robustssm.layers.base import CausalLayer, LayerConfig, Role, SequenceLayer
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config
from robustssm.ops.recurrence import Recurrence


@register("bidirectional")
@settings
class BidirectionalConfig(LayerConfig):
    """Settings of a layer in both directions.

    Source: ma2023mega, whose released code so sums the two directions of its average.
    """

    layer: LayerConfig = S4DConfig()
    """What runs in each direction, with parameters of its own; it must be causal."""

    def build(self, *, d_model: int, length: int, noise: Noise) -> "Bidirectional":
        """Makes both layers in float32 on the CPU.

        Raises:
            ValueError: If `layer` is not causal.
        """
        return Bidirectional(self, d_model=d_model, length=length, noise=noise)

    @classmethod
    def samples(cls) -> tuple[LayerConfig, ...]:
        """One layer that is a convolution and one that is a scan."""
        return (cls(layer=S4DConfig(d_state=4)), cls(layer=S5Config(d_state=4)))


class Bidirectional(SequenceLayer):
    """y = ahead(x) + flip(behind(flip(x))).

    Source: ma2023mega.
    """

    def __init__(self, config: BidirectionalConfig, *, d_model: int, length: int, noise: Noise):
        """Made by `BidirectionalConfig.build`."""
        super().__init__()
        self.config, self.d_model = config, d_model
        build = config.layer.build
        ahead, behind = (
            build(d_model=d_model, length=length, noise=noise.fork(name))
            for name in ("ahead", "behind")
        )
        if not (isinstance(ahead, CausalLayer) and isinstance(behind, CausalLayer)):
            raise ValueError(
                violation(
                    "`BidirectionalConfig(layer=...)`",
                    "be causal, as a layer that sees all tokens has no direction to turn",
                    f"layer='{config.layer.name}'",
                    "Use that layer as it is, or its causal setting.",
                )
            )
        self.ahead, self.behind = ahead, behind

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Maps (batch, length, d_model) to the same shape."""
        with backwards():
            behind = self.behind(x.flip(1)).flip(1)
        return self.ahead(x) + behind

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        """Both layers' references."""
        return self.ahead.reference(x) + self.behind.reference(x.flip(1)).flip(1)

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> Recurrence | None:
        """The system of `ahead`, with that of `behind` as its `backward`.

        Raises:
            Inapplicable: If each direction drives its system with a signal of its own (Mamba).
        """
        ahead, behind = self.ahead.recurrence(x), self.behind.recurrence(x.flip(1))
        if ahead is None or behind is None:
            return None
        if ahead.u is not None or behind.u is not None:
            raise Inapplicable(
                f"The two directions of '{self.config.layer.name}' are driven by different inner "
                "signals, so they are not one recurrence. Ask `ahead.recurrence(x)` and "
                "`behind.recurrence(x.flip(1))`."
            )
        return replace(ahead, backward=behind)

    def roles(self) -> Mapping[str, Role]:
        """Those of both layers."""
        return {
            f"{prefix}.{name}": role
            for prefix, layer in (("ahead", self.ahead), ("behind", self.behind))
            for name, role in layer.roles().items()
        }
