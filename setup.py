"""The compiled CPU kernels: plain C, optional. All else about the package is in pyproject.toml.

Where there is no compiler the installation goes on without them and torch does their work;
`robustssm doctor` says which of the two is active.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("src/robustssm/ops/kernels/csrc")
FLAGS = {
    "x86_64_v4": ["-march=x86-64-v4"],
    "x86_64_v3": ["-march=x86-64-v3"],
    "generic": [],
}


def extensions() -> list[Extension]:
    """One library for each level of the processor family; which one fits is decided at run time."""
    if sys.platform not in ("linux", "darwin"):
        return []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # Apple's compiler has no OpenMP; there the kernels run on one thread.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    return [
        Extension(
            f"robustssm.ops.kernels._native_{level}",
            sources=[str(SOURCES / f"{level}.c")],
            depends=[str(header) for header in sorted(SOURCES.glob("*.h"))],
            # No -ffast-math: it would change the rounding of the whole process when the library is
            # loaded, and NaN must stay NaN.
            extra_compile_args=[
                *("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"),
                *("-fno-tree-slp-vectorize", "-fvisibility=hidden", "-w"),
                *openmp,
                *flags,
            ],
            extra_link_args=openmp,
            optional=True,
        )
        for level, flags in FLAGS.items()
        if x86 or level == "generic"
    ]


setup(ext_modules=extensions())
