"""Access: pieces give what the whole gives, memory that runs out halves them, limits and counts."""

import time

import pytest
import torch

from robustssm.attacks.access import Access, Ledger
from robustssm.core.errors import OutOfTime
from robustssm.ops import divergence


def test_pieces_give_what_the_whole_gives(network):
    model, x, y = network

    def loss(logits, rows):
        return divergence.cross_entropy(logits, y[rows])

    whole = Access(model).climb(x, loss)
    ledger = Ledger(rows=7)
    pieces = Access(model, ledger).climb(x, loss)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert (ledger.calls, ledger.forwards, ledger.backwards) == (9, 60, 60)
    torch.testing.assert_close(Access(model, ledger).logits(x), model(x), rtol=1e-12, atol=1e-14)
    assert (ledger.calls, ledger.forwards, ledger.backwards) == (18, 120, 60)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_halves_the_pieces(network, error):
    model, x, _ = network
    seen = []

    def small(points):
        seen.append(len(points))
        if len(points) > 20:
            raise error
        return model(points)

    access = Access(small)
    torch.testing.assert_close(access.logits(x), model(x), rtol=1e-12, atol=1e-14)
    assert seen == [60, 30, 15, 15, 15, 15]
    access.logits(x)
    assert seen[6:] == [15, 15, 15, 15], "it remembers"


def test_one_row_that_does_not_fit_and_other_errors_are_passed_on(network):
    _, x, _ = network

    def never(points):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Access(never).logits(x)

    def broken(points):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        Access(broken).logits(x)


def test_no_call_after_the_deadline(network):
    model, x, _ = network
    with pytest.raises(OutOfTime):
        Access(model, Ledger(deadline=time.monotonic() - 1)).logits(x)


def test_a_map_before_the_model_shares_the_ledger(network):
    model, x, _ = network
    access = Access(model)
    torch.testing.assert_close(access.after(lambda z: z / 2).logits(x), model(x / 2))
    assert access.ledger.forwards == 60
    assert Access.of(access) is access


def test_logits_without_a_gradient_are_refused(network):
    model, x, y = network
    with pytest.raises(ValueError, match="depend differentiably"):
        Access(lambda z: model(z).detach()).climb(
            x, lambda logits, rows: divergence.cross_entropy(logits, y[rows])
        )
