"""Where real data lie, if they are here."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("ROBUSTSSM_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: ROBUSTSSM_DATA names no directory")
    return folder
