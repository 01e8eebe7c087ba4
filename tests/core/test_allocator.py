"""Freed memory that stays: no page faults at the second use, in this process and its children."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from robustssm.core import allocator
from robustssm.core.allocator import keep_freed_memory, with_huge_pages

glibc = pytest.mark.skipif(allocator._mallopt() is None, reason="needs glibc")

# A tensor of 40 MiB has 10,240 pages of 4 KiB; as pages may be larger, counts are compared.
FAULTS = """
import resource, sys
import torch
from robustssm.core.allocator import keep_freed_memory

def faults():
    for _ in range(16):  # an aligned block does not always fit where one of its size was
        torch.ones(10 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(10 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if __name__ == "__main__":
    if sys.argv[1] == "before and after":
        print(faults())
        keep_freed_memory()
    elif sys.argv[1] == "parent":
        import subprocess
        keep_freed_memory()
        subprocess.run([sys.executable, __file__, "child"], check=True)
        sys.exit()
    print(faults())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "faults.py"
    path.write_text(FAULTS)

    def run(how):
        done = subprocess.run([sys.executable, path, how], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.split()]

    return run


@glibc
def test_large_tensors_cost_page_faults_only_without_it(script):
    before, after = script("before and after")
    assert before > 100
    assert after < before / 10


@glibc
def test_processes_started_later_keep_memory_too(script):
    (child,) = script("parent")
    assert child < 100


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_without_glibc_it_says_so(monkeypatch, platform):
    monkeypatch.setattr(allocator.sys, "platform", platform)
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    with pytest.raises(ValueError, match=rf"must find glibc.*got a process on {platform}.*Leave"):
        keep_freed_memory()
    assert "MALLOC_MMAP_MAX_" not in allocator.os.environ


def test_another_libc_on_linux_is_recognised(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator._mallopt() is None


def test_a_refusal_is_told_and_nothing_is_set(monkeypatch):
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda option, value: 0)
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    with pytest.raises(ValueError, match="must be allowed by glibc"):
        keep_freed_memory()
    assert "MALLOC_MMAP_MAX_" not in allocator.os.environ


HUGE = """
import torch
kept = torch.ones(48 << 20)
with open("/proc/self/smaps_rollup") as lines:
    print(sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
"""


def test_a_process_started_with_huge_pages_has_them():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if allocator._mallopt() is None or not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("needs glibc, and a Linux that grants them")
    if tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        pytest.skip("needs glibc 2.35")
    plain = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    kib = {}
    for name, environment in (("plain", plain), ("huge", with_huge_pages(plain))):
        done = subprocess.run(
            [sys.executable, "-c", HUGE], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        kib[name] = int(done.stdout)
    assert kib["huge"] >= 100_000, "most of 192 MiB"
    if "[madvise]" in setting.read_text():
        assert kib["plain"] < 50_000


def test_huge_pages_leave_other_settings_as_they_are(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    other = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert with_huge_pages(other) == {
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    }
    own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_huge_pages(own) == own
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert with_huge_pages({"A": "b"}) == {"A": "b"}
