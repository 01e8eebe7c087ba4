"""A small problem that trains in no time."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.training.averaging import WeightAverage
from robustssm.training.loop import Learner, train_epoch
from robustssm.training.objective import Objective, Update
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule


@dataclass(frozen=True)
class TinyBatch:
    x: Tensor
    y: Tensor
    indices: Tensor


class Problem:
    """Two Gaussian clouds in five dimensions, inside [0, 1]."""

    def __init__(self) -> None:
        self.placement = Placement("cpu")
        noise = Noise(5)
        self.y = noise.integers(48, high=2)
        self.x = (0.5 + 0.2 * (2 * self.y[:, None] - 1) + noise.normal(48, 5, std=0.1)).clamp(0, 1)

    def model(self, seed: int = 0) -> nn.Module:
        with global_stream(Noise(seed)):
            return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))

    def learner(self, *, seed: int = 0, average: float | None = None) -> Learner:
        model = self.model(seed)
        return Learner(
            model=model,
            optimizer=self.placement.setup_optimizer(AdamW(lr=1e-2).build(model)),
            memory={},
            average=None if average is None else WeightAverage(model, average),
        )

    def batches(self, epoch: int, start: int = 0, size: int = 16) -> Iterator[TinyBatch]:
        order = Noise(epoch).permutation(48)
        for rows in list(order.split(size))[start:]:
            yield TinyBatch(self.x[rows], self.y[rows], rows)


class CrossEntropy(Objective):
    """Not registered: a loss and nothing else."""

    def updates(self, model, x, y, *, memory, noise) -> Iterator[Update]:
        loss = F.cross_entropy(model(x), y)
        yield Update(loss=loss, parts={"twice": 2 * loss.detach()})


def epoch(problem, learner, *, start=0, epochs=3):
    return train_epoch(
        learner,
        CrossEntropy(),
        problem.batches(learner.epoch, start),
        batches_per_epoch=3,
        epochs=epochs,
        schedule=Schedule(),
        max_norm=1.0,
        placement=problem.placement,
        streams=Streams(0),
    )
