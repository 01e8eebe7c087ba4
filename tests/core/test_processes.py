"""Processes that exchange tensors, and how they part; whole runs in tests/experiment."""

import sys

import pytest

from robustssm.core.placement import in_processes
from tests.core.exchange import exchange


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
def test_processes_exchange_and_part_before_their_interpreters_end(tmp_path):
    # A thread of gloo that outlives the interpreter aborts the process, in one exchange of four.
    in_processes(exchange, tmp_path, device="cpu", processes=2)
    for rank in ("0", "1"):
        assert (tmp_path / rank).read_text() == "3 {'from': 0} True"
