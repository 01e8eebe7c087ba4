"""One thread, no network, and nothing left behind."""

import socket

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "robustssm", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("robustssm")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails a test that opens a connection to another machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
        ):
            raise AssertionError(f"A test must not use the network; it tried {address}.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def global_state_untouched():
    """Fails a test that leaves the global random state, default dtype or gradient mode changed."""
    before = torch.random.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    after = torch.random.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0]), "the global random state was used"
    assert before[1:] == after[1:], "the default dtype or gradient mode was left changed"
