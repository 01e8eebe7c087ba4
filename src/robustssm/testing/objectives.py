"""What every training objective must satisfy, yours included: `check_objective`."""

import json

import torch
from torch import Tensor, nn

from robustssm.core.config import from_dict
from robustssm.core.rng import Noise
from robustssm.testing.attacks import CLASSES, SHAPES, ContractClassifier
from robustssm.training.objective import Memory, Objective, Update

_BATCH = 6


def check_objective(objective: Objective) -> None:
    """Holds an objective to what the loop, checkpoints and records rely on.

    Settings survive JSON, also at the start, middle and end of training. For vectors, sequences
    and images: every update has a finite scalar loss with a gradient, and finite, detached, scalar
    parts under names that never change; the last update steps; all parameters receive gradients;
    modes are the caller's whenever control returns, and no parameter gradient appears but by the
    loop's backward; every forward pass in train mode, where running statistics move, carries the
    loss, so that attacks leave them alone; equal noise gives equal losses and memory, and no other
    randomness is used; a final partial batch and a batch of one work; inputs are left alone.

    Args:
        objective: The objective, with settings that are quick.

    Raises:
        AssertionError: Says which of these fails.
    """
    for progress in (0.0, 0.5, 1.0):
        now = objective.at(progress)
        assert type(now) is type(objective), "`at` must return an objective of the same class"
        again = from_dict(Objective, json.loads(json.dumps(now.to_dict())))
        assert again == now, "the settings must survive to_dict, JSON and from_dict"
        assert now.at(progress) == now.at(1.0) == now, (
            "what `at` returns has its schedules evaluated: asking again must not change it"
        )
    for shape in SHAPES:
        _check_training(objective, shape)
        _check_repeatable(objective.at(1.0), shape)
        _check_statistics(objective.at(1.0), shape)


def _data(shape: tuple[int, ...], count: int = _BATCH) -> tuple[Tensor, Tensor]:
    x = Noise(2).uniform(count, *shape, dtype=torch.float64)
    return x, Noise(3).integers(count, high=CLASSES)


def _noise(count: int, step: int = 0) -> Noise:
    return Noise(4, torch.arange(count)).fork(step)


def _check_training(objective: Objective, shape: tuple[int, ...]) -> None:
    """Two whole batches, a partial one and one of a single example, as the loop runs them."""
    model = ContractClassifier(shape, noise=Noise(1), disturbable=False)
    model.train()
    x, y = _data(shape)
    memory = objective.memory(x, batch_size=_BATCH)
    names: set[str] | None = None
    reached: set[str] = set()
    inputs, labels, random = x.clone(), y.clone(), torch.random.get_rng_state()
    for step, count in enumerate((_BATCH, _BATCH, 2, 1)):
        now, noise = objective.at(step / 3), _noise(count, step)
        last: Update | None = None
        for update in now.updates(model, x[:count], y[:count], memory=memory, noise=noise):
            last = update
            _check_update(update, model)
            assert names is None or set(update.parts) == names, (
                f"parts must keep their names: {sorted(names or ())}, then {sorted(update.parts)}"
            )
            names = set(update.parts)
            update.loss.backward()
            reached |= {n for n, p in model.named_parameters() if p.grad is not None}
            if update.step:
                _descend(model)
        assert last is not None, "an objective must yield at least one update"
        assert last.step, "the last update of a batch must step"
    missing = {n for n, _ in model.named_parameters()} - reached
    assert not missing, f"these parameters received no gradient: {sorted(missing)}"
    assert torch.equal(x, inputs) and torch.equal(y, labels), "the batch was changed in place"
    assert torch.equal(torch.random.get_rng_state(), random), "the global random state was used"


def _check_update(update: Update, model: nn.Module) -> None:
    assert update.loss.shape == () and update.loss.requires_grad, "a loss is a scalar with gradient"
    assert update.loss.isfinite(), "the loss must be finite"
    for name, part in update.parts.items():
        assert part.shape == () and not part.requires_grad, f"'{name}' must be a detached scalar"
        assert part.isfinite(), f"'{name}' must be finite"
    assert all(module.training for module in model.modules()), "the caller's mode must be restored"


def _descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


def _check_repeatable(objective: Objective, shape: tuple[int, ...]) -> None:
    def run() -> tuple[list[Tensor], Memory]:
        model = ContractClassifier(shape, noise=Noise(1), disturbable=False)
        x, y = _data(shape)
        memory, losses = objective.memory(x, batch_size=_BATCH), []
        for update in objective.updates(model, x, y, memory=memory, noise=_noise(_BATCH)):
            assert all(p.grad is None for p in model.parameters()) or losses, (
                "no gradient may appear on parameters but by the loop's backward"
            )
            losses.append(update.loss.detach())
            update.loss.backward()
        return losses, memory

    (losses, memory), (others, other_memory) = run(), run()
    assert len(losses) == len(others) and all(map(torch.equal, losses, others)), (
        "equal noise must give equal losses"
    )
    assert memory.keys() == other_memory.keys(), "equal noise must give equal memory"
    assert all(torch.equal(memory[k], other_memory[k]) for k in memory), (
        "equal noise must give equal memory"
    )


def _check_statistics(objective: Objective, shape: tuple[int, ...]) -> None:
    """Batch normalisation moves its statistics in every pass in train mode: an attack must make
    none.
    """
    model = ContractClassifier(shape, noise=Noise(1))
    model.train()
    x, y = _data(shape)
    memory = objective.memory(x, batch_size=_BATCH)
    passes: list[Tensor] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        if module.training:
            passes.append(output)

    handle = model.norm.register_forward_hook(record)
    random = torch.random.get_rng_state()
    try:
        for update in objective.updates(model, x, y, memory=memory, noise=_noise(_BATCH)):
            for output in passes:
                assert output.requires_grad and _reaches(output, update.loss), (
                    "a forward pass in train mode that does not carry the loss moves running "
                    "statistics: run attacks and measurements in eval mode"
                )
            passes.clear()
            update.loss.backward()
    finally:
        handle.remove()
        torch.random.set_rng_state(random)  # dropout in train mode draws from it, rightly


def _reaches(tensor: Tensor, loss: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)
    return gradient is not None
