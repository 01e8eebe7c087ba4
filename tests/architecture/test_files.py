"""How long a file and a function may be, and what stands in neither."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "robustssm"
FILES = sorted(SOURCE.rglob("*.py"))
LINES = 300
FUNCTION = 60

LONG_FILES: dict[str, tuple[int, str]] = {
    "core/config.py": (380, "registry, JSON both ways and overrides share one notion of a field"),
}
"""File to the lines it may have and why it is one file."""

LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}
"""`file::function` to the lines it may have and why it is one function."""


def named(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=named)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function's name and its lines, without decorators and docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                assert first.end_lineno is not None
                length -= first.end_lineno - first.lineno + 1
            yield node.name, length


@each_file
def test_a_file_is_short(path):
    limit, _ = LONG_FILES.get(named(path), (LINES, ""))
    assert len(path.read_text().splitlines()) <= limit


@each_file
def test_a_function_is_short(path):
    for name, length in functions(path):
        limit, _ = LONG_FUNCTIONS.get(f"{named(path)}::{name}", (FUNCTION, ""))
        assert length <= limit, f"{name} has {length} lines"


def test_exceptions_are_needed_and_have_reasons():
    for name, (limit, reason) in LONG_FILES.items():
        assert len((SOURCE / name).read_text().splitlines()) > LINES, f"{name} needs no exception"
        assert limit > LINES and reason
    for name, (limit, reason) in LONG_FUNCTIONS.items():
        file, function = name.split("::")
        lengths = [n for found, n in functions(SOURCE / file) if found == function]
        assert lengths and max(lengths) > FUNCTION, f"{name} needs no exception"
        assert limit > FUNCTION and reason


@each_file
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@each_file
def test_a_module_is_named_after_a_thing(path):
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not vague & {part.lstrip("_") for part in path.relative_to(SOURCE).with_suffix("").parts}


@each_file
def test_annotations_are_not_postponed(path):
    """Else jaxtyping would leave the fields of data classes unchecked."""
    imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    assert "__future__" not in {node.module for node in imports}


@pytest.mark.parametrize("path", [f for f in FILES if "cli" not in f.parts], ids=named)
def test_only_the_command_line_prints(path):
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


MACHINE = re.compile(r"(?<![\w./~$}-])(?:/(?:home|root|Users|work|mnt|opt|media)/\w|[A-Z]:\\\w)")


def in_repository() -> list[Path]:
    """Files under version control, and those that would be at the next commit."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_knows_the_machine_it_was_written_on():
    found = []
    for path in in_repository():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue  # an array or an image
        where = path.relative_to(ROOT)
        found += [f"{where}:{n}: {s}" for n, s in enumerate(lines, 1) if MACHINE.search(s)]
    assert not found


@pytest.mark.parametrize(
    "text, caught",
    [
        # In two parts, so that this file knows no machine either.
        ("see /" + "home/ada/data", True),
        ("'/" + "Users/ada/x'", True),
        ("C:" + r"\Users", True),
        ("https://example.org/home/ada", False),
        ("$HOME/work/x", False),
        ("runs/work/x", False),
        ("a ratio mnt/opt", False),
    ],
)
def test_a_machine_path_is_recognised(text, caught):
    assert bool(MACHINE.search(text)) is caught
