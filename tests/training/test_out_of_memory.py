"""Memory that is not enough: the batch is begun again in more pieces, or the error says why not."""

import gc
import weakref
from typing import ClassVar

import pytest
import torch

from robustssm.core.errors import OutOfMemory
from robustssm.core.rng import Streams
from robustssm.training import loop
from robustssm.training.division import out_of_memory
from robustssm.training.loop import train_epoch
from robustssm.training.schedule import Schedule
from robustssm.training.standard import Standard
from tests.training.divided import DIVISIBLE, WHOLE, in_threads, ran
from tests.training.tiny import CrossEntropy, classifier


class Small(type(classifier(disturbable=False))):
    """A model that has memory for so many examples, once `after` passes are over."""

    @classmethod
    def that_fits(cls, most, *, after=0, error=torch.OutOfMemoryError):
        model = classifier(disturbable=False)
        model.__class__ = cls
        model.most, model.after, model.error = most, after, error
        model.failed = []
        return model

    def embed(self, x):
        self.after -= 1
        if len(x) > self.most and self.after < 0:
            self.failed.append(len(x))
            raise self.error(f"out of memory for {len(x)}\n(and much more)")
        return super().embed(x)


@pytest.mark.parametrize("name", ["standard", "trades", "free", "yopo", "fast", "jacobian"])
def test_it_goes_on_in_pieces_with_the_same_outcome(name):
    model = Small.that_fits(3)
    divided = ran(DIVISIBLE[name], model=model)
    # Then 2 + 2 + 2 + 2, and so for the rest of the run; attacks divide what they need themselves.
    assert set(model.failed) == {8, 4} and len(model.failed) <= 5
    divided.assert_close(ran(DIVISIBLE[name]), but=("fgsm_accuracy", "check_accuracy"))


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_also_in_the_middle_of_a_batch_before_its_step(after):
    """YOPO takes two outer passes of several gradients each before its only step."""
    model = Small.that_fits(4, after=after)
    ran(DIVISIBLE["yopo"], model=model).assert_close(ran(DIVISIBLE["yopo"]))
    assert model.failed


def test_after_a_step_it_is_too_late():
    model = Small.that_fits(4, after=2)
    with pytest.raises(OutOfMemory, match=r"before its first step; .*for 8\) after 2\. Set micro"):
        ran(DIVISIBLE["free"], model=model)


def test_one_example_that_does_not_fit_is_an_error():
    with pytest.raises(OutOfMemory, match=r"example by example; it does not \(out of memory for 1"):
        ran(Standard(), model=Small.that_fits(0))


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_divisible_says_so(name):
    with pytest.raises(OutOfMemory, match=r"or be divisible; it does not .*leaves the model alone"):
        ran(WHOLE[name], model=Small.that_fits(4))


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ran(Standard(), model=Small.that_fits(4, error=_shapes))


def _shapes(text):
    return RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    ],
)
def test_what_counts_as_out_of_memory(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory")])
def test_what_does_not(error):
    assert not out_of_memory(error)


def test_the_allocator_of_this_machine_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_each_process_divides_its_own_share():
    whole = ran(DIVISIBLE["yopo"])
    models = {}

    def one(placement):
        model = Small.that_fits(2 if placement.rank else 100)
        models[placement.rank] = model
        return ran(DIVISIBLE["yopo"], placement=placement, model=model)

    models_of_ranks = in_threads(2, one)
    for each in models_of_ranks:
        each.assert_close(whole)
    assert not models[0].failed and models[1].failed == [4]


class Greedy(CrossEntropy):
    """Holds a large tensor while it fails, as a graph would be held."""

    held: ClassVar[list] = []

    def updates(self, model, x, y, *, memory, noise):
        large = torch.zeros(3)
        self.held.append(weakref.ref(large))
        if len(x) > 8:
            raise torch.OutOfMemoryError("out of memory")
        yield from super().updates(model, x, y, memory=memory, noise=noise)


def test_memory_is_free_again_before_the_next_try(problem, monkeypatch):
    alive, train = [], loop._train
    gc.disable()

    def counted(*arguments, **keywords):
        alive.append(sum(ref() is not None for ref in Greedy.held))
        return train(*arguments, **keywords)

    monkeypatch.setattr(loop, "_train", counted)
    try:
        learner = problem.learner()
        reports = list(
            train_epoch(
                learner,
                Greedy(),
                problem.batches(0),
                batches_per_epoch=3,
                epochs=1,
                schedule=Schedule(),
                max_norm=1.0,
                placement=problem.placement,
                streams=Streams(0),
            )
        )
    finally:
        gc.enable()
    assert alive == [0] * 4, "without waiting for the collector of cycles"
    assert [report.micro_batches for report in reports] == [2, 2, 2]
    assert learner.micro_batches == 2 and learner.step == 3
