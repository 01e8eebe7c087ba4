"""Importing costs what it must: nothing for the package, no torch for the reports."""

import json
import subprocess
import sys

import pytest

PROBE = """
import importlib, json, pkgutil, sys, time
start = time.perf_counter()
package = importlib.import_module({package!r})
seconds = time.perf_counter() - start
if {everything}:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(json.dumps([seconds, sorted(m for m in sys.modules if "." not in m)]))
"""


def imported(package: str, *, everything: bool = False) -> tuple[float, set[str]]:
    """Seconds that importing takes in a fresh interpreter, and the top-level modules it loads."""
    script = PROBE.format(package=package, everything=everything)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_importing_the_package_is_free():
    runs = [imported("robustssm") for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.3
    for _, modules in runs:
        assert not modules & {"torch", "numpy", "pydantic", "matplotlib", "lightning_fabric"}


def test_every_public_name_of_the_package_exists():
    import robustssm

    for name in getattr(robustssm, "__all__", ["__version__"]):
        assert getattr(robustssm, name) is not None


@pytest.mark.parametrize(
    "package, everything",
    [
        ("robustssm.reporting", True),
        ("robustssm.recipes", False),
        ("robustssm.cli", False),
        ("robustssm.core.config", False),
        ("robustssm.records", False),
    ],
)
def test_what_needs_no_torch_loads_none(package, everything):
    _, modules = imported(package, everything=everything)
    assert not modules & {"torch", "lightning_fabric"}


def test_records_need_the_standard_library_alone():
    _, modules = imported("robustssm.records")
    foreign = {m for m in modules - sys.stdlib_module_names if not m.startswith("_")}
    assert not foreign & {"numpy", "pydantic", "torch", "rich", "typer"}
