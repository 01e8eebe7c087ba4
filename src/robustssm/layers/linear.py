"""`nn.Linear` whose product is `ops.dense`."""

from jaxtyping import Float
from torch import Tensor, nn

from robustssm.ops.dense import dense


class Linear(nn.Linear):
    """W x + b: parameters, their names and initial draws, and values as of `nn.Linear`."""

    def forward(self, input: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """Maps the last axis."""
        return dense(input, self.weight, self.bias)
