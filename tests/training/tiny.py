"""A small problem that trains in no time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustssm.core.placement import Placement
from robustssm.core.rng import Noise, Streams, global_stream
from robustssm.testing.attacks import ContractClassifier
from robustssm.training.averaging import WeightAverage
from robustssm.training.loop import Learner, train_batch, train_epoch
from robustssm.training.objective import Objective, Update
from robustssm.training.optim import SGD, AdamW
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


SHAPE = (2, 4, 4)


@dataclass
class Trained:
    """A model after some batches of the loop, and what else they left behind."""

    model: nn.Module
    memory: dict[str, Tensor]
    random: Tensor
    scalars: list[dict[str, float]]

    def assert_equals(self, other: "Trained") -> None:
        state = other.model.state_dict()
        for name, tensor in self.model.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert torch.equal(self.random, other.random), "the random state of dropout"

    def assert_close(self, other: "Trained", **tolerance: float) -> None:
        state = other.model.state_dict()
        for name, tensor in self.model.state_dict().items():
            torch.testing.assert_close(tensor, state[name], **tolerance)


def examples(count: int = 8, dtype: torch.dtype = torch.float64, batch: int = 0):
    """A batch for a `ContractClassifier`, with its noise."""
    x = Noise(1).fork(batch).uniform(count, *SHAPE, dtype=dtype)
    return (
        x,
        Noise(2).fork(batch).integers(count, high=4),
        Noise(3, torch.arange(count)).fork(batch),
    )


def classifier(dtype: torch.dtype = torch.float64, *, disturbable: bool = True) -> nn.Module:
    return ContractClassifier(SHAPE, noise=Noise(0), disturbable=disturbable).to(dtype)


def trained(
    objective: Objective,
    *,
    dtype: torch.dtype = torch.float64,
    disturbable: bool = True,
    counts: tuple[int, ...] = (8, 8, 3),
    lr: float = 0.1,
) -> Trained:
    """Trains by the loop with plain SGD, on batches of these sizes."""
    placement, model = Placement("cpu"), classifier(dtype, disturbable=disturbable)
    model.train()
    optimizer = SGD(lr=lr, momentum=0.0, weight_decay=0.0).build(model)
    memory = objective.memory(examples(1, dtype)[0], batch_size=max(counts))
    learner = Learner(model, placement.setup_optimizer(optimizer), memory)
    scalars = []
    with global_stream(Noise(4)):
        for batch, count in enumerate(counts):
            x, y, noise = examples(count, dtype, batch)
            scalars.append(train_batch(learner, objective, x, y, noise=noise, placement=placement))
        random = torch.random.get_rng_state()
    return Trained(model, memory, random, scalars)
