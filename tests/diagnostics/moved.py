"""An attack and layers of which one knows what they do to features."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustssm.attacks.access import Access
from robustssm.attacks.base import Attack
from robustssm.attacks.region import Region
from robustssm.core.config import settings
from robustssm.core.rng import Noise
from robustssm.layers.base import LayerConfig, SequenceLayer


@settings
class Moved(Attack):
    """Adds a fixed draw, less than eps; not registered, as only tests know it."""

    name: ClassVar[str] = "moved"
    size: float = 0.05

    def perturb(
        self,
        model: Access,
        x: Float[Tensor, "batch ..."],
        y: Int[Tensor, " batch"],
        *,
        region: Region,
        noise: Noise,
    ) -> Float[Tensor, "batch ..."]:
        return x + self.size * noise.normal(like=x)


@settings
class MapConfig(LayerConfig):
    """Not registered either."""

    kind_of_map: str = "triple"

    def build(self, *, d_model: int, length: int, noise: Noise) -> "Map":
        turn = torch.linalg.qr(Noise(5).normal(d_model, d_model)).Q
        maps = {"triple": 3 * torch.eye(d_model), "turn": turn, "zero": 0 * turn}
        return Map(maps[self.kind_of_map])


class Map(SequenceLayer):
    """y = x W."""

    def __init__(self, weight):
        super().__init__()
        self.d_model = len(weight)
        self.weight = nn.Parameter(weight)

    def forward(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        return x @ self.weight

    def reference(
        self, x: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length d_model"]:
        return x @ self.weight

    def recurrence(self, x: Float[Tensor, "batch length d_model"]) -> None:
        return None
