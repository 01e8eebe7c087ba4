"""Fast training: PGD training by one step, bit for bit, and an alarm that goes off once."""

import warnings

import pytest
import torch
from torch import nn

from robustssm.attacks.fgsm import FGSM
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.rng import Noise
from robustssm.training.fast import Fast
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.standard import Standard
from tests.training.tiny import trained


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5)])
def test_it_is_pgd_training_by_one_step_bit_for_bit(norm, eps):
    threat = Threat(norm=norm, eps=eps)
    one_step = PGDTraining(threat=threat, attack=FGSM(start="uniform", step_size=1.25))
    trained(Fast(threat=threat, check_every=1)).assert_equals(trained(one_step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_eps_zero_it_is_standard_training_bit_for_bit(dtype, outcome):
    fast = Fast(threat=Threat(eps=0.0))
    outcome(fast, dtype=dtype).assert_equals(outcome(Standard(), dtype=dtype))


class Dented(nn.Module):
    """Right at an input and one step of 0.1 above it, wrong in the dent of given depth between.

    It is what catastrophic overfitting makes of a model, in one dimension.
    """

    def __init__(self, depth):
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(depth))

    def forward(self, x):
        offset = (x[:, 0] - 0.5).abs() / 0.1
        margin = 1 - self.depth * torch.exp(-((offset - 0.4) ** 2) / 0.05)
        return torch.stack((margin, -margin), 1)


def check(fast, model, memory, count=4):
    x, y = torch.full((count, 1), 0.5), torch.zeros(count, dtype=torch.int64)
    noise = Noise(0, torch.arange(count))
    (update,) = fast.updates(model, x, y, memory=memory, noise=noise)
    return {name: float(value) for name, value in update.parts.items()}


def fast_and_memory(**settings):
    fast = Fast(threat=Threat(eps=0.1), start="none", step_size=1.0, check=PGD(steps=4), **settings)
    return fast, fast.memory(torch.zeros(1, 1), batch_size=4)


def test_the_alarm_goes_off_once_and_says_so_in_the_readings():
    fast, memory = fast_and_memory(check_every=1)
    with pytest.warns(RuntimeWarning, match=r"100% of its own points and on 0% under pgd-4: cat"):
        parts = check(fast, Dented(2.5), memory)
    assert (parts["fgsm_accuracy"], parts["check_accuracy"], parts["overfitting"]) == (1, 0, 1)
    check(fast, Dented(2.5), memory)  # a warning would be an error here


def test_an_honest_model_raises_no_alarm():
    fast, memory = fast_and_memory(check_every=1)
    parts = check(fast, Dented(0.5), memory)
    assert (parts["fgsm_accuracy"], parts["check_accuracy"], parts["overfitting"]) == (1, 1, 0)


def test_figures_are_smoothed_over_checks_and_kept_between_them():
    fast, memory = fast_and_memory(check_every=3, gap=0.6)
    good, bad = Dented(0.5), Dented(2.5)
    seen = [check(fast, model, memory)["check_accuracy"] for model in (good, bad, bad, bad, bad)]
    assert seen == [1, 1, 1, 0.5, 0.5], "looked at batches 1 and 4"
    assert memory["batches"] == 5 and not memory["warned"]


def test_the_alarm_goes_on_where_a_checkpoint_left_it():
    fast, memory = fast_and_memory(check_every=1)
    with pytest.warns(RuntimeWarning):
        check(fast, Dented(2.5), memory)
    saved = {name: tensor.clone() for name, tensor in memory.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(fast, Dented(2.5), saved)["overfitting"] == 1


def test_the_check_looks_at_the_first_examples_only():
    fast, memory = fast_and_memory(check_every=1, check_examples=2)
    rows = []
    model = Dented(0.5)
    model.register_forward_hook(lambda module, args, out: rows.append((module.training, len(out))))
    check(fast, model, memory)
    assert [n for training, n in rows if training] == [4]
    assert rows[0] == (False, 4) and {n for training, n in rows[1:] if not training} == {2}
