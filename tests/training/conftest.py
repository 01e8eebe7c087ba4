"""Fixtures of the training tests."""

import pytest
from tests.training.tiny import Problem


@pytest.fixture
def problem() -> Problem:
    return Problem()
