"""Every kernel compiles for an H100, on any machine: the interpreter accepts more than that."""

import importlib.util
import subprocess
import sys

import pytest

KERNELS = {
    *("to_channel_major", "to_batch_major", "toeplitz", "chunked"),
    *("real_scan", "complex_scan", "averages", "forward", "backward"),
}

SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from robustssm.ops.kernels import triton_convolution_kernels as convolution
from robustssm.ops.kernels import triton_scan_kernels as scan
from robustssm.ops.kernels import triton_selective_scan_kernels as selective
from robustssm.ops.kernels import triton_state_space_kernels as state_space
from robustssm.ops.kernels.triton_convolution import _tile as toeplitz_tile
from robustssm.ops.kernels.triton_selective_scan import _tile as selective_tile

F32, BF16, INT = "*fp32", "*bf16", "i32"

seen = set()

def check(kernel, types, warps=4, **constants):
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    sizes = [name for name in names if signature[name] == INT]
    # Whole numbers that are 1 are constants too: one of each kernel is compiled that way as well.
    for ones in ([], sizes)[: 1 if kernel in seen else 2]:
        seen.add(kernel)
        source = ASTSource(
            kernel,
            signature | dict.fromkeys(ones, "constexpr"),
            constants | dict.fromkeys(ones, 1),
        )
        options = {"num_warps": warps}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.metadata.shared <= 227 * 1024
        print(kernel.__name__, "cubin" in compiled.asm)

copy = dict(REVERSE=True, T=64, C=32)
check(convolution.to_channel_major, [F32, BF16, INT, INT, INT], **copy)
check(convolution.to_batch_major, [BF16, F32, INT, INT, INT], **copy)
for size, precision, x in [
    (16, "ieee", F32), (1024, "tf32", BF16), (1024, "tf32x3", F32), (1024, "bf16", BF16)
]:
    tile = toeplitz_tile(size, size)._asdict()
    warps = tile.pop("num_warps")
    check(convolution.toeplitz, [x, F32, F32, INT, INT], warps, PRECISION=precision, **tile)
for precision, N, warps in [("tf32x3", 32, 4), ("tf32", 64, 8)]:
    constants = dict(PRECISION=precision, T=64, M=64, N=N)
    check(state_space.chunked, [F32] * 6 + [INT, INT], warps, **constants)
for kernel in (scan.real_scan, scan.complex_scan):
    for varying, adjoint in [(False, False), (True, True), (False, True)]:
        constants = dict(REVERSE=adjoint, VARYING=varying, ADJOINT=adjoint, SLOPES=adjoint)
        check(kernel, [F32] * 5 + [INT] * 3, 1, T=16, C=32, **constants)
for N in (1, 16):
    constants = dict(REVERSE=True, T=16, N=N, C=32)
    check(scan.averages, [BF16, F32, F32, BF16] + [INT] * 3, max(1, N // 4), **constants)
for states, x in [(1, F32), (16, BF16)]:
    T, N, warps = selective_tile(states)
    tile = dict(T=T, N=N, C=32)
    check(selective.forward, [x, x, F32, x, x, F32, x, F32] + [INT] * 3, warps, **tile)
    many = [x, x, F32, x, x, F32, F32, x, x, x, F32, F32, F32, F32]
    check(selective.backward, many + [INT] * 3, warps, **tile)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_an_h100(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = done.stdout.split()
    assert set(built[::2]) == KERNELS and set(built[1::2]) == {"True"}
