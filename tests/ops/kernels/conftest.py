"""Without a GPU, kernels run in Triton's interpreter: said before any kernel is imported."""

import importlib.util
import os

import pytest
import torch

HAVE_TRITON = importlib.util.find_spec("triton") is not None

if HAVE_TRITON and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def device(monkeypatch):
    """Where kernels run here: a GPU, else the CPU by way of the interpreter."""
    if not HAVE_TRITON:
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        return "cuda"
    repair_interpreter(monkeypatch)
    return "cpu"


def repair_interpreter(monkeypatch):
    """Mends two faults of the interpreter of Triton 3.6.

    Bounds of loops that are arguments are read by int(array), which NumPy 2.4 refuses unless the
    array has no dimension; and products take the bit patterns of bfloat16 for whole numbers.
    """
    import numpy
    from triton.language import bfloat16
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch_with_bounds(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def widened(handle):
        if handle.dtype.scalar != bfloat16:
            return handle
        bits = handle.data.astype(numpy.uint32) << 16
        return interpreter.TensorHandle(bits.view(numpy.float32), interpreter.tl.float32)

    def dot_with_bfloat16(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_with_bounds)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_with_bfloat16)
