"""Descent and Adam against autograd, and the loop around them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.rng import Noise
from robustssm.models.linear_ssm import LinearSSM, diagonal_teacher
from robustssm.poisoning.descent import AdaptiveDescent, stack
from robustssm.poisoning.initialisation import Head, Start, student
from robustssm.poisoning.network import BETA1, BETA2, EPSILON, AdamNetwork
from robustssm.poisoning.sequences import TrainingSet, ordinary, special
from robustssm.poisoning.training import Stop, train


def drawn(noise: Noise, *shape: int) -> np.ndarray:
    return noise.normal(*shape, dtype=torch.float64).numpy()


def leaf(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value.copy()).requires_grad_()


def problem(seed: int, *, poisoned: bool = True, length: int = 6) -> TrainingSet:
    noise = Noise(seed)
    made = ordinary(8, length=length, support=(1, 2), noise=noise.fork("ordinary"))
    if poisoned:
        made = made + special(10, length=length, noise=noise.fork("special"))
    return made.labelled(diagonal_teacher(1.0))


def starts(seeds, **settings) -> LinearSSM:
    return stack([student(Start(**settings), d_state=5, noise=Noise(seed)) for seed in seeds])


def full_loss(matrix, b, c, data: TrainingSet) -> torch.Tensor:
    """With the whole state matrix, by the recurrence."""
    state = torch.zeros(len(data.x), len(b), dtype=torch.float64)
    for step in range(data.length):
        inputs = torch.from_numpy(np.ascontiguousarray(data.x[:, step : step + 1]))
        state = state @ matrix.T + inputs * b
    return ((state @ c - torch.from_numpy(data.y)) ** 2).mean()


@given(seed=st.integers(0, 100), runs=st.integers(1, 3), length=st.integers(4, 9))
def test_descents_gradients_and_the_full_matrix_norm_are_autograds(seed, runs, length):
    noise = Noise(seed)
    system = LinearSSM(
        a=0.8 * drawn(noise, runs, 4), b=drawn(noise, runs, 4), c=drawn(noise, runs, 4)
    )
    data = [problem(seed + run, length=length) for run in range(runs)]
    learner = AdaptiveDescent(system, data, base_step=np.full(runs, 0.1))
    losses = learner.losses()
    da, db, dc, norm = learner.gradient()
    for run in range(runs):
        leaves = [leaf(np.diag(system.a[run])), leaf(system.b[run]), leaf(system.c[run])]
        loss = full_loss(*leaves, data[run])
        matrix, to_b, to_c = torch.autograd.grad(loss, leaves)
        np.testing.assert_allclose(losses[run], loss.item(), rtol=1e-9)
        np.testing.assert_allclose(da[run], matrix.diagonal(), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(db[run], to_b, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(dc[run], to_c, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(norm[run], float(matrix.norm()), rtol=1e-8, atol=1e-10)


def reference_descent(data: TrainingSet, start: LinearSSM, *, base: float, steps: int, fixed: bool):
    """The published rule, step by step, with autograd and a projection on the diagonal."""
    matrix, b, c = np.diag(start.a), start.b, start.c
    memory = 0.0
    for step in range(steps):
        leaves = [leaf(matrix), leaf(b), leaf(c)]
        grads = torch.autograd.grad(full_loss(*leaves, data), leaves)
        memory = 0.8 * memory + 0.2 * sum(float(g.norm()) for g in grads)
        size = base / (np.sqrt(memory / (1 - 0.8 ** (step + 1))) + 1e-6)
        moved = [p.detach().numpy() - size * g.numpy() for p, g in zip(leaves, grads, strict=True)]
        matrix, b, c = np.diag(np.diag(moved[0])), moved[1], moved[2]
        if fixed:
            b, c = np.ones_like(b), np.ones_like(c)
    return np.concatenate([np.diag(matrix), b, c])


@pytest.mark.parametrize("fixed", [False, True])
def test_twenty_steps_of_descent_are_those_of_the_published_rule(fixed):
    start, data = starts([0, 1]), [problem(0), problem(1, poisoned=False)]
    bases = np.array([0.01, 0.002])
    learner = AdaptiveDescent(start, data, base_step=bases, fixed_weights=fixed)
    for _ in range(20):
        learner.losses()
        learner.update()
    for run in range(2):
        one = LinearSSM(a=start.a[run], b=start.b[run], c=start.c[run])
        expected = reference_descent(data[run], one, base=bases[run], steps=20, fixed=fixed)
        np.testing.assert_allclose(learner.states()[run], expected, rtol=1e-9, atol=1e-12)


def test_the_diagonal_norm_leaves_out_the_rest_of_the_matrix():
    start, data = starts([0]), [problem(0)]
    made = {
        norm: AdaptiveDescent(start, data, base_step=np.array([0.01]), norm=norm)
        for norm in ("matrix", "diagonal")
    }
    norms = {}
    for name, learner in made.items():
        learner.losses()
        da, *_, norms[name] = learner.gradient()
        if name == "diagonal":
            np.testing.assert_allclose(norms[name], np.linalg.norm(da, axis=1), rtol=1e-12)
    assert norms["matrix"] > 1.5 * norms["diagonal"]


def network_loss(parts, data: TrainingSet) -> torch.Tensor:
    a, b, c, inward, outward, hidden = parts
    state = torch.zeros(len(data.x), len(a), dtype=torch.float64)
    for step in range(data.length):
        inputs = torch.from_numpy(np.ascontiguousarray(data.x[:, step : step + 1]))
        state = a * state + inputs * b
    first = torch.relu((state @ c)[:, None] * inward)
    predicted = torch.relu(first @ hidden) @ outward
    return ((predicted - torch.from_numpy(data.y)) ** 2).mean()


@given(seed=st.integers(0, 60))
def test_steps_of_adam_in_a_network_are_autograds_in_the_form_of_keras(seed):
    noise, width = Noise(seed), 4
    start = LinearSSM(a=0.8 * drawn(noise, 2, 3), b=drawn(noise, 2, 3), c=drawn(noise, 2, 3))
    head = Head(
        inward=drawn(noise, 2, width),
        hidden=drawn(noise, 2, width, width),
        outward=drawn(noise, 2, width),
    )
    data = [problem(seed), problem(seed + 1, poisoned=False)]  # of 18 and 8 sequences
    rates = np.array([0.05, 0.01])
    learner = AdamNetwork(start, head, data, rate=rates)
    parts = (start.a, start.b, start.c, head.inward, head.outward, head.hidden)
    own = [[leaf(part[run]) for part in parts] for run in range(2)]
    moments = [[(torch.zeros_like(p), torch.zeros_like(p)) for p in run] for run in own]
    for step in range(1, 4):
        losses = learner.losses()
        learner.update()
        for run in range(2):
            loss = network_loss(own[run], data[run])
            np.testing.assert_allclose(losses[run], loss.item(), rtol=1e-8)
            gradients = torch.autograd.grad(loss, own[run])
            for place, gradient in enumerate(gradients):
                first, second = moments[run][place]
                first = BETA1 * first + (1 - BETA1) * gradient
                second = BETA2 * second + (1 - BETA2) * gradient**2
                moments[run][place] = first, second
                rate = rates[run] * np.sqrt(1 - BETA2**step) / (1 - BETA1**step)
                moved = own[run][place] - rate * first / (second.sqrt() + EPSILON)
                own[run][place] = moved.detach().requires_grad_()
    for run in range(2):
        expected = np.concatenate([p.detach().numpy().ravel() for p in own[run]])
        np.testing.assert_allclose(learner._theta[run], expected, rtol=1e-6, atol=1e-8)


def trained(seeds, stop: Stop, *, base: float = 0.01, levels=()):
    start, data = starts(seeds), [problem(seed, poisoned=bool(seed % 2)) for seed in seeds]
    learner = AdaptiveDescent(start, data, base_step=np.full(len(seeds), base))
    return data, train(learner, runs=len(seeds), d_state=5, stop=stop, levels=levels)


def test_a_run_ends_some_steps_after_it_first_reached_its_level():
    stop = Stop(level=0.1, extra_steps=30, max_steps=5000)
    data, traces = trained([0, 1, 2], stop)
    assert len({trace.steps[-1] for trace in traces}) == 3
    for each, trace in zip(data, traces, strict=True):
        assert trace.reached_at is not None and trace.steps[-1] == trace.reached_at + 30
        there = trace.at_level(0.1)
        assert there is not None
        mse = float(((there.predict(each.x) - each.y) ** 2).mean())
        assert 0.05 < mse <= 0.1
        final = float(((trace.final.predict(each.x) - each.y) ** 2).mean())
        np.testing.assert_allclose(trace.train_mse[-1], final, rtol=1e-9)
        assert trace.steps[0] == 0 and trace.steps == sorted(set(trace.steps))


def test_a_run_does_not_depend_on_its_companions():
    stop = Stop(level=0.1, extra_steps=10, max_steps=5000)
    _, together = trained([0, 1, 2], stop)
    for place, seed in enumerate([0, 1, 2]):
        _, (alone,) = trained([seed], stop)
        assert alone.steps[-1] == together[place].steps[-1]
        np.testing.assert_allclose(together[place].packed[-1], alone.packed[-1], rtol=1e-7)


def test_a_run_that_reaches_nothing_is_given_up_and_says_so():
    _, (trace,) = trained([0], Stop(level=1e-12, extra_steps=5, max_steps=40), levels=(1e3,))
    assert trace.reached_at is None and trace.steps[-1] == 40
    assert trace.at_level(1e-12) is None and trace.at_level(1e3) is not None


def test_a_run_that_diverges_is_ended_and_leaves_the_others_alone():
    start, data = starts([0, 1]), [problem(0), problem(1)]
    stop = Stop(level=0.1, extra_steps=10, max_steps=3000)
    learner = AdaptiveDescent(start, data, base_step=np.array([0.01, 1e9]))
    good, bad = train(learner, runs=2, d_state=5, stop=stop)
    assert bad.diverged and bad.reached_at is None and bad.steps[-1] < 100
    assert not good.diverged and good.reached_at is not None


def test_progress_rises_from_nothing_to_everything():
    told = []
    start, data = starts([0, 1]), [problem(0), problem(1)]
    learner = AdaptiveDescent(start, data, base_step=np.full(2, 1e-4))
    stop = Stop(level=1e-9, extra_steps=0, max_steps=1600)
    train(learner, runs=2, d_state=5, stop=stop, progress=told.append)
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1 and len(told) > 3


def test_settings_refuse_what_makes_no_sense():
    for wrong in ({"level": 0.0}, {"extra_steps": -1}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="must be"):
            Stop(**wrong)
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(Start(), a_scale=-1.0)
