"""The recorded loop by a stand-in for CUDA that replays what it saw; the plain loop for real."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from robustssm.attacks.captured import CapturedLoop, inner_precision
from robustssm.core.rng import Noise


class StandIn:
    """Of torch.cuda: what `CapturedLoop` calls, in a log."""

    def __init__(self, fails=None):
        self.log, self.fails, self.where = [], fails, "plain"

    def Stream(self, name="side"):
        waits = lambda other: self.log.append(f"{name} waits for {other.name}")  # noqa: E731
        return SimpleNamespace(name=name, wait_stream=waits)

    def current_stream(self):
        return self.Stream("current")

    def set_stream(self, stream):
        self.log.append(f"back on {stream.name}")

    def CUDAGraph(self):
        """Runs the recorded function again, on the tensors it had, into the tensor it made."""
        graph = SimpleNamespace()
        graph.replay = lambda: (self.log.append("replay"), graph.output.copy_(graph.work()))
        return graph

    @contextmanager
    def _within(self, where):
        self.log.append(where)
        self.where = where
        try:
            yield
        finally:
            self.where = "plain"

    def stream(self, stream):
        return self._within(f"on {stream.name}")

    @contextmanager
    def graph(self, graph):
        try:
            with self._within("record"):
                yield
                if self.fails:
                    raise RuntimeError(self.fails)
        finally:
            if self.fails:
                raise RuntimeError("ending the recording failed")


class Loop(CapturedLoop):
    """Tells the graphs of a stand-in what they recorded; a real one knows."""

    def _record(self, inputs, addresses):
        recording = super()._record(inputs, addresses)
        static = recording.inputs
        recording.graph.work = lambda: self._loop(static[0], static[1:])
        recording.graph.output = recording.output
        return recording


def captured(step, steps=3, cuda=None, **more):
    cuda = cuda or StandIn()
    return Loop(step, steps, cuda=cuda, device_type="cpu", **more), cuda


def towards(points, target):
    return points + 0.5 * (target - points)


ZERO, ONE = torch.zeros(2, 3), torch.ones(2, 3)


def test_warm_up_then_record_then_replay():
    loop, cuda = captured(towards)
    torch.testing.assert_close(loop(ZERO, ONE), torch.full_like(ONE, 7 / 8))
    assert loop.reason == ""
    first = ["side waits for current", "on side", "current waits for side", "record"]
    first += ["back on current", "replay"]
    assert cuda.log == first
    torch.testing.assert_close(loop(ONE, 3 * ONE), torch.full_like(ONE, 3 - 2 / 8))
    assert cuda.log == [*first, "replay"]


def test_arguments_and_results_are_not_the_graphs_own():
    loop, _ = captured(towards)
    start = ZERO.clone()
    first = loop(start, ONE)
    kept = first.clone()
    loop(start, 5 * ONE)
    assert torch.equal(first, kept) and torch.equal(start, ZERO)


def test_one_recording_for_each_shape_dtype_and_key_and_the_oldest_go():
    loop, cuda = captured(towards, keep=2)
    large = ONE.repeat(2, 1)
    for points, key in [(ZERO, None), (0 * large, None), (ZERO, None), (0 * large, None)]:
        loop(points, points + 1, key=key)
    assert cuda.log.count("record") == 2
    loop(ZERO, ONE, key="eval")
    loop(0 * large, large)
    assert cuda.log.count("record") == 3
    loop(ZERO, ONE)
    loop(ZERO.double(), ONE.double())
    assert cuda.log.count("record") == 5
    loop.forget()
    loop(ZERO, ONE)
    assert cuda.log.count("record") == 6


def model_and_loop(**more):
    noise = Noise(3)
    model = torch.nn.utils.skip_init(torch.nn.Linear, 3, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(noise.fork(name).normal(*parameter.shape))

    def step(points, labels):
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            loss = cross_entropy(model(leaf), labels)
            return points + 0.1 * torch.autograd.grad(loss, leaf)[0].sign()

    return model, step, *captured(step, watched=model.parameters, **more)


def plainly(step, points, labels):
    for _ in range(3):
        points = step(points, labels)
    return points


def test_parameters_may_change_in_place_and_are_recorded_again_where_they_move():
    model, step, loop, cuda = model_and_loop()
    x, y = Noise(1).normal(5, 3), torch.arange(5) % 4
    torch.testing.assert_close(loop(x, y), plainly(step, x, y))
    with torch.no_grad():
        model.weight.mul_(-1)
    torch.testing.assert_close(loop(x, y), plainly(step, x, y))
    assert cuda.log.count("record") == 1
    model.weight = torch.nn.Parameter(model.weight.detach().clone())
    torch.testing.assert_close(loop(x, y), plainly(step, x, y))
    assert cuda.log.count("record") == 2
    loop(x, y)
    assert cuda.log.count("record") == 2
    assert model.weight.grad is None


def test_what_is_prepared_is_prepared_within_the_recording():
    entered = []
    loop, cuda = captured(towards, around=lambda: prepared())

    @contextmanager
    def prepared():
        entered.append(cuda.where)
        yield

    loop(ZERO, ONE)
    assert entered[:2] == ["on side", "record"]


@pytest.mark.parametrize("message", ["operation not permitted when stream is capturing", ""])
def test_what_cannot_be_recorded_runs_plainly_and_says_why(message):
    cuda = StandIn(fails=message or "\n")
    loop, _ = captured(towards, cuda=cuda)
    for _ in range(2):
        assert torch.equal(loop(ZERO, ONE), torch.full_like(ONE, 7 / 8))
        assert loop.reason == f"the loop could not be recorded: {message or 'RuntimeError'}"
    assert cuda.log.count("record") == 1 and cuda.log[-1] == "back on current"
    cuda.fails = None
    assert torch.equal(loop(ONE.double(), ONE.double()), ONE.double())
    assert loop.reason == ""
    loop.forget()
    loop(ZERO, ONE)
    assert loop.reason == ""


def test_errors_of_the_step_itself_are_not_hidden():
    def wrong(points):
        raise ValueError("mine")

    loop, _ = captured(wrong)
    with pytest.raises(ValueError, match="mine"):
        loop(ZERO)


def test_a_step_that_changes_the_shape_is_not_recorded():
    loop, cuda = captured(lambda points: torch.cat([points, points]), steps=1)
    assert len(loop(ZERO)) == 4
    assert "must keep shape" in loop.reason and "record" not in cuda.log


def test_other_devices_and_gradients_run_plainly():
    loop = CapturedLoop(towards, 3)
    assert torch.equal(loop(ZERO, ONE), torch.full_like(ONE, 7 / 8))
    assert "only cuda tensors can be recorded; some lie on cpu" in loop.reason
    loop, cuda = captured(towards)
    loop(ZERO.clone().requires_grad_(), ONE)
    assert "no gradient" in loop.reason and not cuda.log


def test_autocast_belongs_within_the_recording():
    loop, cuda = captured(towards, around=lambda: inner_precision("bf16", "cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loop(ZERO, ONE)
        assert "within `around`" in loop.reason and not cuda.log
    loop(ZERO, ONE)
    assert loop.reason == ""


def test_tf32_is_recorded_apart():
    loop, cuda = captured(towards)
    for kind in ("fp32", "tf32", "fp32", "tf32"):
        with inner_precision(kind, "cpu"):
            loop(ZERO, ONE)
    assert cuda.log.count("record") == 2


def test_a_plain_loop_that_moves_nothing_returns_another_tensor():
    loop = CapturedLoop(lambda points: points, 3)
    assert loop(ZERO) is not ZERO


def settings():
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision, matmul.allow_tf32, torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize(
    "kind, precision, autocast", [("fp32", "ieee", 0), ("tf32", "tf32", 0), ("bf16", None, 1)]
)
def test_precision_is_set_and_restored(kind, precision, autocast, before):
    matmul = torch.backends.cuda.matmul
    found = matmul.fp32_precision
    matmul.allow_tf32 = before == "tf32"
    matmul.fp32_precision = before
    try:
        outside = settings()
        with pytest.raises(KeyError), inner_precision(kind, "cpu"):
            expected = {"none", "ieee"} if precision == "ieee" else {precision or before}
            assert matmul.fp32_precision in expected
            assert settings()[1:] == (matmul.fp32_precision == "tf32", bool(autocast))
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == (torch.bfloat16 if autocast else torch.float32)
            raise KeyError
        assert settings() == outside
    finally:
        matmul.allow_tf32 = found == "tf32"
        matmul.fp32_precision = found


def test_precisions_nest():
    with inner_precision("bf16", "cpu"), inner_precision("fp32", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_full_precision_needs_no_gpu():
    with inner_precision("fp32"), inner_precision("tf32"):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
def test_on_a_gpu(kind):
    model, step, _, _ = model_and_loop()
    model.cuda()
    loop = CapturedLoop(
        step, 3, around=lambda: inner_precision(kind), watched=lambda: model.parameters()
    )
    x, y = Noise(1).normal(5, 3).cuda(), (torch.arange(5) % 4).cuda()
    for sign in (1, -1):
        with torch.no_grad():
            model.weight.mul_(sign)
        with inner_precision(kind):
            expected = plainly(step, x, y)
        torch.testing.assert_close(loop(x, y), expected)
        assert loop.reason == ""


@pytest.mark.gpu
def test_a_step_that_asks_the_host_runs_plainly_on_a_gpu():
    loop = CapturedLoop(lambda points: points + points.sum().item(), 2)
    points = torch.ones(3, device="cuda")
    assert torch.equal(loop(points), torch.full_like(points, 16.0))
    assert "could not be recorded" in loop.reason
    assert torch.equal(CapturedLoop(torch.neg, 1)(points), -points)  # the device is still usable
