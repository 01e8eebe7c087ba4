"""The loader of the compiled kernels: missing, damaged or foreign libraries never stop anything."""

import shutil
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution
from robustssm.ops.kernels import native

GENERIC = native._files("generic")
LEVELS = ("x86_64_v4", "x86_64_v3", "generic")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
built = pytest.mark.skipif(native.state().level is None, reason="needs the compiled kernels")
compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """An installation of its own, on a processor with every level: a directory, looked at anew."""

    def files(level):
        path = tmp_path / f"_native_{level}.so"
        return [path] if path.exists() else []

    monkeypatch.setattr(native, "_files", files)
    monkeypatch.setattr(native.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    look_anew()
    yield tmp_path
    look_anew()


def look_anew():
    native._found.cache_clear()
    native._reported.cache_clear()


@pytest.fixture
def generic():
    """A sound library that runs on every processor of this kind."""
    if not GENERIC:
        pytest.skip("needs the compiled kernels")
    return GENERIC[0]


def convolved():
    u = Noise(0).normal(2, 96, 5).requires_grad_()
    y = causal_convolution(u, Noise(1).normal(5, 96, std=0.1))
    (gradient,) = torch.autograd.grad(y.square().sum(), u)
    return y.detach(), gradient


def warned_once(match):
    """Runs something that asks for the kernels; the second time must be silent."""
    with pytest.warns(RuntimeWarning, match=match) as caught:
        first = convolved()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = convolved()
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    return first


def compile_library(path, body):
    source = path.with_suffix(".c")
    source.write_text("#include <stdint.h>\n" + body)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, source], check=True)


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_missing_libraries_are_told_once_and_torch_does_the_work(libraries):
    with native.without():
        expected = convolved()
    state = native.state()
    assert (state.level, state.width, state.refused) == (None, 0, ())
    assert "not built" in state.reason and "--no-cache-dir" in state.reason
    found = warned_once(r"No compiled CPU kernels\. They were not built.*Slower torch code runs")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 999, b"\x7fELF\x02\x01\x01" + bytes(4000), b"\x7fELF\x02\x01"]
)
def test_what_is_no_library_is_refused(libraries, content):
    for level in LEVELS:
        (libraries / f"_native_{level}.so").write_bytes(content)
    state = native.state()
    assert state.level is None and len(state.refused) == 3
    warned_once(r"_native_x86_64_v4\.so: .*_native_generic\.so: ")


def test_the_next_level_runs_where_a_better_one_is_damaged(libraries, generic):
    (libraries / "_native_x86_64_v4.so").write_bytes(generic.read_bytes()[:5000])
    (libraries / "_native_x86_64_v3.so").write_bytes(b"garbage")
    shutil.copy(generic, libraries / "_native_generic.so")
    state = native.state()
    assert (state.level, state.reason, len(state.refused)) == ("generic", "", 2)
    assert "cut off after 5000 bytes" in state.refused[0]
    with native.without():
        expected = convolved()
    assert_close(warned_once("level generic run where better ones would.*cut off"), expected)


def test_a_sound_library_is_used_in_silence(libraries, generic):
    shutil.copy(generic, libraries / "_native_generic.so")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convolved()
    assert native.state().level == "generic" and native.state().refused == ()


@compiler
@pytest.mark.parametrize(
    "body, reason",
    [
        ("int64_t other(void) { return 1; }", "undefined symbol: robustssm_native_version"),
        (
            "int64_t robustssm_native_version(void) { return 77; }"
            "int64_t robustssm_vector_width(void) { return 4; }",
            rf"it is version 77 where version {native.VERSION} is needed",
        ),
        (
            f"int64_t robustssm_native_version(void) {{ return {native.VERSION}; }}"
            "int64_t robustssm_vector_width(void) { return 4; }",
            "undefined symbol: (?!robustssm)",
        ),
    ],
    ids=["not ours", "wrong version", "a kernel is missing"],
)
def test_a_foreign_library_is_refused_and_the_next_one_tried(libraries, generic, body, reason):
    compile_library(libraries / "_native_x86_64_v4.so", body)
    shutil.copy(generic, libraries / "_native_x86_64_v3.so")
    state = native.state()
    assert state.level == "x86_64_v3"
    warned_once(rf"_native_x86_64_v4\.so: .*{reason}")


CUT = """
import sys
from pathlib import Path
from robustssm.ops.kernels import native
whole, cut = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
outcomes = []
for share in range(0, 101):
    # A new name each time: the system must not hand back the library before.
    path = cut.with_name(f"{share}.so")
    path.write_bytes(whole[: len(whole) * share // 100])
    try:
        native._checked(path)
        outcomes.append("loaded")
    except (OSError, ValueError, AttributeError):
        outcomes.append("refused")
print(*outcomes)
"""


def test_a_library_cut_off_anywhere_is_refused_not_a_crash(generic, tmp_path):
    """Loading such a file kills a process, so another one tries."""
    done = subprocess.run(
        [sys.executable, "-c", CUT, generic, tmp_path / "cut.so"], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    outcomes = done.stdout.split()
    assert len(outcomes) == 101 and outcomes[-1] == "loaded"
    assert outcomes[:5] == ["refused"] * 5
    assert outcomes == sorted(outcomes, reverse=True), "refused up to some length, then loaded"


@built
def test_without_nests_and_restores():
    x = torch.ones(2)
    assert native.available(x)
    with native.without():
        assert not native.available(x)
        with native.without():
            assert not native.available(x)
        assert not native.available(x)
    assert native.available(x)
    with pytest.raises(KeyError), native.without():
        raise KeyError
    assert native.available(x)


@built
def test_without_holds_in_other_threads():
    seen = []
    with native.without():
        thread = threading.Thread(target=lambda: seen.append(native.available(torch.ones(2))))
        thread.start()
        thread.join()
    assert seen == [False]


@built
@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, device="meta"),
        torch.ones(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64).conj().imag,
    ],
    ids=["float64", "bfloat16", "complex64", "int64", "meta", "sparse", "negated"],
)
def test_other_tensors_are_not_available(x):
    assert not native.available(x)
    assert not native.available(torch.ones(2), x)
    assert native.available(torch.ones(2))


@built
@pytest.mark.parametrize("level, width", [("x86_64_v4", 16), ("x86_64_v3", 8), ("generic", 4)])
def test_a_level_can_be_chosen(level, width):
    capability = torch.backends.cpu.get_cpu_capability()
    if level not in (*native._LEVELS.get(capability, ()), "generic") or not native._files(level):
        pytest.skip("not for this processor")
    before = native.state()
    with native.at_level(level):
        assert (native.state().level, native.vector_width()) == (level, width)
        here = convolved()
    assert native.state() == before
    assert_close(here, convolved())


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="got 'x86_64_v9'"), native.at_level("x86_64_v9"):
        pass
