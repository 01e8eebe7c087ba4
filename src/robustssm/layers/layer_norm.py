"""`nn.LayerNorm` that is computed by `ops.layer_norm`."""

from jaxtyping import Float
from torch import Tensor, nn

from robustssm.ops.layer_norm import layer_norm


class LayerNorm(nn.LayerNorm):
    """Over the last axis: parameters, their names and values as of `nn.LayerNorm(width)`."""

    def __init__(self, width: int):
        """With weights of one and biases of zero."""
        super().__init__(width)

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Normalises every row."""
        return layer_norm(input, self.weight, self.bias, self.eps)
