"""Training on divided batches: several processes played by threads, and every objective."""

import threading
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.placement import Placement
from robustssm.training.fast import Fast
from robustssm.training.free import Free
from robustssm.training.jacobian import JacobianPenalty
from robustssm.training.loop import Learner, train_batch
from robustssm.training.mart import Mart
from robustssm.training.optim import SGD
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from robustssm.training.trades import Trades
from robustssm.training.weight_perturbation import AdversarialWeightPerturbation
from robustssm.training.yopo import Yopo
from tests.training.tiny import classifier, examples

THREAT = Threat(eps=0.1)
_KL = PGD(steps=2, loss="kl", start="normal", keep="last")
_PGD = PGDTraining(threat=THREAT, attack=PGD(steps=2, keep="last"))

DIVISIBLE = {
    "standard": Standard(label_smoothing=0.1),
    "pgd": _PGD,
    "trades": Trades(threat=Threat(norm="l2", eps=0.5), attack=_KL),
    "free": Free(threat=THREAT, replays=3),
    "free_l2": Free(threat=Threat(norm="l2", eps=0.5), replays=2, step_size=0.5),
    "free_released": Free(threat=Threat(eps=0.3), variant="released"),
    "yopo": Yopo(threat=THREAT, outer=2, inner=2),
    "yopo_l2": Yopo(threat=Threat(norm="l2", eps=0.5), outer=2, inner=1),
    "fast": Fast(threat=THREAT, check_every=2, check_examples=2, gap=1.0),
    "mart": Mart(threat=THREAT, attack=PGD(steps=2, start="normal", keep="last")),
    "jacobian": JacobianPenalty(weight=0.1),
}
WHOLE = {
    "awp": AdversarialWeightPerturbation(objective=_PGD, gamma=0.05),
    "awp_trades": AdversarialWeightPerturbation(objective=DIVISIBLE["trades"], gamma=0.05),
    "yopo_released": Yopo(threat=THREAT, outer=2, variant="released"),
}
"""Between processes only."""

COUNTS = (8, 8, 3, 1)
"""Sizes of batches: the third and the last cannot be shared out evenly, or not at all."""


_BUILDING = threading.Lock()


@dataclass
class Ran:
    """What some batches left behind."""

    scalars: list[dict[str, float]]
    gradients: list[dict[str, Tensor]]
    parameters: dict[str, Tensor]
    memory: dict[str, Tensor]

    def assert_close(self, other: "Ran", *, but: tuple[str, ...] = ()) -> None:
        for mine, its in zip(self.scalars, other.scalars, strict=True):
            assert mine.keys() == its.keys()
            for name in mine.keys() - set(but):
                torch.testing.assert_close(
                    torch.tensor(mine[name]), torch.tensor(its[name]), rtol=1e-6, atol=1e-7
                )
        torch.testing.assert_close(self.gradients, other.gradients, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(self.parameters, other.parameters, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(self.memory, other.memory, rtol=1e-9, atol=1e-12)


def ran(objective, *, placement=None, micro_batches=1, counts=COUNTS, max_norm=0.5, model=None):
    """Trains in float64 by SGD with momentum, clipped; gradients are those of every step."""
    placement = placement or Placement("cpu")
    with _BUILDING:  # which draws from torch's global generator
        model = model or classifier(disturbable=False)
    model.train()
    optimizer = SGD(lr=0.1, momentum=0.5, weight_decay=0.01).build(model)
    gradients, step = [], optimizer.step

    def recording(*arguments, **keywords):
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        return step(*arguments, **keywords)

    optimizer.step = recording
    memory = objective.memory(examples(1)[0], batch_size=max(counts))
    learner = Learner(model, optimizer, memory, micro_batches=micro_batches)
    scalars = []
    for batch, count in enumerate(counts):
        x, y, noise = examples(count, batch=batch)
        scalars.append(
            train_batch(
                learner, objective, x, y, noise=noise, max_norm=max_norm, placement=placement
            )
        )
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    return Ran(scalars, gradients, parameters, memory)


class Played(Placement):
    """One of several processes, played by a thread: sums go through a list that all see."""

    def __init__(self, rank, boxes, barrier):
        super().__init__("cpu")
        self._rank, self._boxes, self._barrier = rank, boxes, barrier
        self.totals = 0

    @property
    def rank(self):
        return self._rank

    @property
    def processes(self):
        return len(self._boxes)

    def total(self, tensor):
        self.totals += 1
        self._boxes[self._rank] = tensor.detach().clone()
        self._barrier.wait(timeout=30)
        shapes = {tuple(t.shape) for t in self._boxes}
        assert len(shapes) == 1, f"processes exchange different things: {shapes}"
        found = torch.stack(list(self._boxes)).sum(0)
        self._barrier.wait(timeout=30)
        return found


def in_threads(processes, work):
    """What `work(placement)` returns in each of several played processes."""
    boxes, barrier = [torch.empty(0)] * processes, threading.Barrier(processes)
    results, errors = [None] * processes, []

    def one(rank):
        try:
            results[rank] = work(Played(rank, boxes, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(processes)]
    with warnings.catch_warnings():  # filters that threads set in turn are not put back in turn
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return results
