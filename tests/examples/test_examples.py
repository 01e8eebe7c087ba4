"""The examples run, and stay short enough to be read."""

import importlib.util
from pathlib import Path

import pytest

from robustssm.core.rng import Noise, global_stream

FOLDER = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "own_loop": (0.3, 1.0, "PGD-10"),
    "printed_bounds": (2, 100, "1409"),
}
"""What `main` returns lies between the first two, and the third is among what it prints."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_runs(path, capsys):
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with global_stream(Noise(0)):
        found = module.main()
    least, largest, says = EXPECTED[path.stem]
    assert least <= found <= largest
    assert says in capsys.readouterr().out
