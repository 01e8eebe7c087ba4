"""The tutorial, executed as it is written: a stranger's walk from a clone to a figure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """Language, file name ("" for commands) and text of every fenced block, in order."""
    return [(m[1], m[2] or "", m[3]) for m in _BLOCK.finditer(TUTORIAL.read_text())]


def test_every_block_is_understood() -> None:
    found = blocks()
    assert TUTORIAL.read_text().count("```") == 2 * len(found)
    assert {language for language, _, _ in found} == {"console", "sh", "toml", "python"}
    assert all(bool(name) == (language in ("toml", "python")) for language, name, _ in found)


@pytest.mark.timeout(600)
def test_the_walk(tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    said = ""
    for language, name, text in blocks():
        if name:
            (tmp_path / name).write_text(text)
        elif language == "sh":
            done = subprocess.run(
                ["bash", "-e", "-c", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
    assert "AttributeError" not in said
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "S4" in page and "strong_trades" in page
    assert (tmp_path / "runs" / "strong_trades" / "seed_0" / "evaluation.json").exists()
