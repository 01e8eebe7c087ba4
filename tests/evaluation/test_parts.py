"""Parts on threads: the same bits for any number of threads, and only where it is safe."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustssm.attacks.access import Access
from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.fab import FABTargeted
from robustssm.attacks.parts import reentrant, rows_that_fit
from robustssm.attacks.square import Square
from robustssm.attacks.threat import Threat
from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Noise, global_stream
from robustssm.evaluation.evaluate import evaluate
from robustssm.evaluation.plan import PART, PARTS, parts
from tests.attacks.digits_net import digits_net

SHORT = Ensemble(
    stages=(
        APGD(steps=15),
        APGDTargeted(steps=5, targets=3),
        FABTargeted(steps=5, targets=3),
        Square(queries=100),
    )
)


@given(n=st.integers(1, 2000))
def test_parts_are_equal_and_complete(n):
    found = parts(n)
    sizes = [part.stop - part.start for part in found]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1 and max(sizes) <= PART
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert len(found) % PARTS == 0 or len(found) == n


def test_the_result_is_the_same_for_any_number_of_threads():
    net, x, y, _ = digits_net()
    results = []
    for threads in (1, 2, 3):
        with cpu_threads(threads):
            results.append(evaluate(net, x[:120], y[:120], SHORT, Threat(eps=0.15)))
            assert torch.get_num_threads() == threads, "restored"
    assert results[0] == results[1] == results[2]
    assert 0 < results[0].robust_accuracy < results[0].clean_accuracy


def test_a_failure_in_a_thread_is_the_failure_of_the_evaluation():
    net, x, y, _ = digits_net()
    calls = itertools.count()

    def failing(z):
        if next(calls) > 70:
            raise RuntimeError("the kernel gave up")
        return net(z)

    with cpu_threads(2), pytest.raises(RuntimeError, match="gave up"):
        evaluate(failing, x[:120], y[:120], SHORT, Threat(eps=0.15), concurrent=True)


def test_who_may_be_called_from_several_threads(network):
    net, *_ = digits_net()
    assert reentrant(net)
    assert not reentrant(network[0]), "a class of somebody's own"
    assert not reentrant(lambda z: z)
    handle = net[0].register_forward_hook(lambda *_: None)
    assert not reentrant(net), "hooks may do anything"
    handle.remove()
    assert reentrant(net)
    with global_stream(Noise(0)):
        changed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert not reentrant(changed), "a class that was made on the way"


def test_pieces_depend_on_what_a_row_keeps():
    with global_stream(Noise(0)):
        small, large = nn.Linear(10, 10), nn.Sequential(nn.Linear(10, 200_000), nn.ReLU())
    x = torch.ones(4, 10)
    assert rows_that_fit(Access(small), x) == 128
    assert 1 <= rows_that_fit(Access(large), x) < 128


def test_a_kernel_without_a_backward_pass_is_flagged_and_attacked_by_black_box():
    net, x, y, _ = digits_net()

    def kernel(z):
        if z.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("this kernel has no backward pass")
        return net(z)

    result = evaluate(kernel, x[:40], y[:40], Square(queries=50), Threat(eps=0.15))
    assert [warning.name for warning in result.warnings] == ["no_gradient"]
    assert "no backward pass" in result.warnings[0].message
    assert result.robust_accuracy < result.clean_accuracy
    assert result.verdict == "suspicious"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm, eps, stored", [("linf", 0.15, "Linf_0.15"), ("l2", 1.0, "L2_1.0")])
def test_the_whole_suite_agrees_with_the_reference(norm, eps, stored):
    net, x, y, flags = digits_net()
    sizes = (500, 100, 37) if norm == "linf" else (500,)
    threat = Threat(norm=norm, eps=eps)
    results = [
        evaluate(net, x, y, "autoattack_standard", threat, batch_size=size) for size in sizes
    ]
    assert results[0].verdict == "reliable" and not results[0].warnings
    reference = flags[f"survive_{stored}_square"]
    assert abs(sum(results[0].robust) - int(reference.sum())) <= 2
    for other in results[1:]:
        assert other.robust == results[0].robust
        assert other.suites["autoattack_standard"].stages == (
            results[0].suites["autoattack_standard"].stages
        )
