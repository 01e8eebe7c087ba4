"""A divided batch is the whole batch: losses, gradients and memory, in pieces and in processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.core.errors import Inapplicable
from robustssm.core.rng import Noise
from robustssm.training.division import require_divisible, shares
from robustssm.training.exchange import summed
from robustssm.training.pieces import of_whole_batch
from robustssm.training.standard import Standard
from tests.training.divided import DIVISIBLE, WHOLE, in_threads, ran
from tests.training.tiny import classifier

CHECKED = ("fgsm_accuracy", "check_accuracy", "overfitting")
"""Measured by `Fast` on the first examples of each piece; only the first piece's are remembered."""


SOME = ("standard", "free", "yopo", "fast")


@pytest.mark.parametrize(
    "name, pieces", [*((name, 3) for name in DIVISIBLE), *((name, 20) for name in SOME)]
)
def test_pieces_add_up_to_the_batch(name, pieces):
    whole = ran(DIVISIBLE[name])
    divided = ran(DIVISIBLE[name], micro_batches=pieces)
    if name == "fast" and pieces == 20:  # the first piece has fewer examples than are checked
        divided.memory = whole.memory
    divided.assert_close(whole, but=CHECKED)


@pytest.mark.parametrize(
    "name, processes, pieces",
    [*((name, 3, 2) for name in DIVISIBLE), *((name, 2, 1) for name in SOME)],
)
def test_processes_and_their_pieces_add_up_to_the_batch(name, processes, pieces):
    whole = ran(DIVISIBLE[name])
    found = in_threads(processes, lambda p: ran(DIVISIBLE[name], placement=p, micro_batches=pieces))
    for each in found:
        if name == "fast" and pieces == 2:
            each.memory = whole.memory
        each.assert_close(whole, but=CHECKED)
    for each in found[1:]:
        assert each.scalars == found[0].scalars
        assert all(torch.equal(each.parameters[n], t) for n, t in found[0].parameters.items())


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_go_in_pieces_can_go_in_processes(name):
    whole = ran(WHOLE[name])
    for each in in_threads(3, lambda p: ran(WHOLE[name], placement=p)):
        each.assert_close(whole)


@pytest.mark.parametrize("name", WHOLE)
def test_and_is_refused_in_pieces(name):
    with pytest.raises(Inapplicable, match=r"leaves the model alone.*got.*Set micro_batches=1"):
        ran(WHOLE[name], micro_batches=2)


def test_a_method_that_is_divisible_inside_is_so_while_weights_are_not_moved():
    awp = WHOLE["awp"]
    assert not awp.divisible and type(awp)(objective=awp.objective, gamma=0.0).divisible
    assert not type(awp)(objective=awp.objective, start=0.5).divisible, "refused from the start"


def test_a_model_whose_examples_see_each_other_is_refused():
    model = classifier(disturbable=True)
    with pytest.raises(Inapplicable, match="got a model with BatchNorm"):
        ran(Standard(), micro_batches=2, model=model)
    with pytest.raises(Inapplicable, match="normalises over the batch"):
        in_threads(2, lambda p: ran(Standard(), placement=p, model=model))
    require_divisible(Standard(), torch.nn.InstanceNorm1d(3), count=2)


@given(count=st.integers(1, 300), parts=st.integers(1, 40))
def test_shares_cover_a_batch_and_weigh_one(count, parts):
    found = shares(count, parts)
    rows = [row for share in found for row in range(count)[share.rows]]
    assert rows == list(range(count))
    sizes = [share.count for share in found]
    assert max(sizes) - min(sizes) <= 1
    assert sum(share.weight for share in found) == pytest.approx(1.0)


def test_one_exchange_per_step_and_one_for_memory():
    """Nothing is exchanged before a step: until then a process may begin its batch again."""
    exchanges = {"standard": 1, "trades": 1, "yopo": 1, "free": 3 + 1, "fast": 1 + 1}
    for name, expected in exchanges.items():

        def one(placement, name=name):
            ran(DIVISIBLE[name], placement=placement, counts=(8,))
            return placement.totals

        assert in_threads(2, one) == [expected, expected], name


def test_a_parameter_that_one_process_alone_reached_gets_its_gradient_in_all():
    def one(placement):
        model = torch.nn.ParameterDict(
            {
                "both": torch.nn.Parameter(torch.zeros(2, dtype=torch.cfloat)),
                "one": torch.nn.Parameter(torch.zeros(3)),
                "none": torch.nn.Parameter(torch.zeros(3)),
            }
        )
        model["both"].grad = torch.full((2,), 1.0 + placement.rank * 1j)
        if placement.rank == 1:
            model["one"].grad = torch.ones(3)
        (scalars,) = summed(model, [{"loss": torch.tensor(0.5 + placement.rank)}], placement)
        return {name: p.grad for name, p in model.items()}, float(scalars["loss"])

    for gradients, loss in in_threads(2, one):
        assert torch.equal(gradients["both"], torch.full((2,), 2.0 + 1.0j))
        assert torch.equal(gradients["one"], torch.ones(3))
        assert gradients["none"] is None, "an optimiser would decay it"
        assert loss == 2.0


def test_means_of_the_whole_batch_are_what_came_where_nothing_is_divided():
    given_ = [Noise(0).normal(3), None]
    assert of_whole_batch(given_) == given_
