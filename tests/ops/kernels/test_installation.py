"""Building robustssm: with a C compiler, without one, and from a source distribution."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from robustssm.ops.kernels import native

pytest.importorskip("setuptools", minversion="77")

COMPILERS = [
    name for name in ("gcc-9", "gcc-10", "gcc-11", "gcc", "clang-14", "clang") if shutil.which(name)
]
ROOT = Path(__file__).resolve().parents[3]
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
USE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import robustssm
from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution
from robustssm.ops.kernels import native
assert robustssm.__file__.startswith(sys.argv[1]), robustssm.__file__
causal_convolution(Noise(0).normal(2, 64, 3), Noise(1).normal(3, 64))
print(native.state().level)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a checkout holds, without anything built."""
    place = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    rubbish = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", place / "src", ignore=rubbish)
    return place


def build(source, hook, out, **environment):
    """What pip calls, and the file that it makes."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, out],
        cwd=source,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


def libraries(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    return {name.split("_native_")[1].split(".")[0] for name in names if "/_native_" in name}


def used(wheel, place):
    """The level that runs, in a new process that has the wheel and none of its C sources."""
    zipfile.ZipFile(wheel).extractall(place)
    shutil.rmtree(place / "robustssm" / "ops" / "kernels" / "csrc", ignore_errors=True)
    return subprocess.run([sys.executable, "-c", USE, place], capture_output=True, text=True)


def test_without_a_compiler_the_wheel_is_built_and_works(source, tmp_path):
    wheel = build(source, "build_wheel", tmp_path / "out", CC="/nonexistent")
    assert libraries(wheel) == set()
    done = used(wheel, tmp_path / "installed")
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert done.stderr.count("No compiled CPU kernels") == 1


def test_the_source_distribution_has_the_c_sources(source, tmp_path):
    path = build(source, "build_sdist", tmp_path / "out")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = ROOT / "src/robustssm/ops/kernels/csrc"
    assert {f"src/robustssm/ops/kernels/csrc/{p.name}" for p in sources.glob("*.[ch]")} <= names
    assert {"setup.py", "pyproject.toml", "src/robustssm/ops/kernels/native.py"} <= names


@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v3", "generic"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_other_compilers_understand_the_sources(compiler, level):
    # GCC before 12 lacks some of Clang's vector functions; what fails to compile is left out.
    if level != "generic" and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the level is one of another processor")
    source = ROOT / f"src/robustssm/ops/kernels/csrc/{level}.c"
    flags = [] if level == "generic" else ["-march=" + level.replace("_", "-")]
    include = f"-I{sysconfig.get_paths()['include']}"
    done = subprocess.run(
        [compiler, "-fsyntax-only", "-std=gnu11", "-w", include, *flags, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(native.state().level is None, reason="needs a C compiler")
def test_with_a_compiler_the_wheel_has_every_level(source, tmp_path):
    wheel = build(source, "build_wheel", tmp_path / "out")
    x86 = native.state().level != "generic" or bool(native._files("x86_64_v3"))
    assert libraries(wheel) == ({"x86_64_v4", "x86_64_v3", "generic"} if x86 else {"generic"})
    done = used(wheel, tmp_path / "installed")
    assert (done.returncode, done.stdout) == (0, f"{native.state().level}\n"), done.stderr
    assert done.stderr == ""
