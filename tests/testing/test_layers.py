"""`check_layer` is worth something only if it fails: one broken layer for each promise."""

import itertools

import pytest
import torch
from torch import nn

from robustssm.core.config import _registry, names, register, settings
from robustssm.core.rng import Noise
from robustssm.layers.base import CausalLayer, LayerConfig
from robustssm.layers.preparation import Preparing
from robustssm.ops.recurrence import Recurrence
from robustssm.testing.layers import check_layer


class Integrator(Preparing, CausalLayer):
    """y[t] = h[t] = a h[t-1] + x[t], channel by channel: a layer without a fault."""

    def __init__(self, config, d_model, noise):
        super().__init__()
        self.config, self.d_model = config, d_model
        self.a = nn.Parameter(noise.uniform(d_model, low=0.5, high=0.9))
        if config.fault == "unused parameter":
            self.idle = nn.Parameter(noise.normal(2))
        if config.fault == "complex parameter":
            self.phase = nn.Parameter(noise.normal(2).to(torch.complex64))

    def forward(self, x):
        fault = self.config.fault
        a = self._prepared("a", lambda: self.a.clone())
        if fault == "frozen" and self._kept is not None:
            a = a * 1.01
        if fault == "stale cache":
            self.__dict__.setdefault("stale", self.a.detach().clone())
            a = self.a * 0 + self.__dict__["stale"].to(x)
        lag = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        kernel = torch.where(lag[..., None] >= 0, a ** lag.clamp(min=0)[..., None], 0.0)
        y = torch.einsum("tsc,bsc->btc", kernel, x)
        if fault == "rows meet":
            y = y + y.mean(0, keepdim=True)
        if fault == "last row speaks" and len(x) > 1:
            y = torch.cat([y[:1] + 1e-12 * y[-1:], y[1:]])
        if fault == "looks ahead":
            y = y + x.flip(1)
        if fault == "float32 inside":
            y = y.float().to(x.dtype)
        if fault == "not finite":
            y = y / torch.zeros_like(y)
        if fault == "other dtype":
            y = y.double()
        if fault == "writes on its input":
            x.mul_(2)
        if fault == "memory layout":
            y = y if x.is_contiguous() else -y
        if fault == "no gradient":
            y = y.detach() + 0 * self.a.sum()
        return y

    def initial_state(self, batch_size):
        return self.a.new_zeros(batch_size, self.d_model)

    def step(self, x, state):
        state = self.a * state + x
        if self.config.fault == "rows meet":
            return state + state.mean(0, keepdim=True), state
        return (state * 1.001 if self.config.fault == "another step" else state), state

    def recurrence(self, x):
        ones = torch.ones(1, 1, self.d_model, 1, dtype=x.dtype)
        a = self.a.to(x.dtype)[None, None, :, None]
        if self.config.fault == "imprecise recurrence":
            a = a.float()
        if self.config.fault == "another recurrence":
            a = 0.9 * a
        D = torch.zeros(self.d_model, 1, 1, dtype=x.dtype)
        return Recurrence(A=a, B=ones[..., None], C=ones[..., None], D=D)

    def roles(self):
        return {"a" if self.config.fault != "roles" else "b": "dynamics"}


@settings
class IntegratorConfig(LayerConfig):
    """Settings of a layer with one fault, or none."""

    fault: str = ""

    def build(self, *, d_model, length, noise):
        if self.fault == "constant start":
            noise = Noise(0)
        if self.fault == "noise of its own":
            noise = noise.fork(next(DRAWS))
        layer = Integrator(self, d_model, noise)
        return layer.double() if self.fault == "built in float64" else layer


DRAWS = itertools.count()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Known by name in a registry of its own, so that no other test meets it."""
    names("layer")  # files the layers of the house now, not into the copy
    monkeypatch.setitem(_registry, "layer", dict(_registry["layer"]))
    register("integrator")(IntegratorConfig)


def test_a_layer_without_fault_passes():
    check_layer(IntegratorConfig())


@pytest.mark.parametrize(
    "fault, message",
    [
        ("noise of its own", "equal noise must give equal parameters"),
        ("constant start", "another noise must give other parameters"),
        ("complex parameter", "real numbers"),
        ("built in float64", "built in float32"),
        ("roles", "`roles` names b"),
        ("other dtype", "keep shape, dtype and device"),
        ("not finite", "outputs must be finite"),
        ("writes on its input", "input must be left"),
        ("memory layout", "memory layout"),
        ("unused parameter", "idle must receive a gradient"),
        ("no gradient", "the input must receive a gradient"),
        ("another step", "`forward` must be `reference`"),
        ("float32 inside", "`forward` must be `reference`"),
        ("rows meet", "one example must give"),
        ("looks ahead", "`forward` must be `reference`"),
        ("imprecise recurrence", "precision of x"),
        ("another recurrence", "a linear layer must be its recurrence"),
        ("frozen", "`frozen` must not change a number"),
        ("stale cache", "state dict must carry|must not outlive"),
    ],
)
def test_each_fault_is_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(IntegratorConfig(fault=fault))


def test_looking_ahead_is_found_where_the_steps_do_so_too(monkeypatch):
    monkeypatch.setattr(Integrator, "reference", Integrator.__call__)
    with pytest.raises(AssertionError, match="must not look ahead"):
        check_layer(IntegratorConfig(fault="looks ahead"))


def test_meeting_rows_are_found_where_one_example_hides_them(monkeypatch):
    monkeypatch.setattr(Integrator, "reference", Integrator.__call__)
    with pytest.raises(AssertionError, match="rows of a batch must never meet"):
        check_layer(IntegratorConfig(fault="last row speaks"))
