"""Benchmarks run here at the sizes of a test, without peers."""

import pytest


@pytest.fixture
def machine_left_alone(monkeypatch):
    """Asking git for the commit is slow and says nothing here."""
    monkeypatch.setattr("benchmarks.report.commit", lambda: "a test")
