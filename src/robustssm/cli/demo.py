"""The main job on the embedded data: every structure, every method, one report."""

import os
import time
from pathlib import Path

from rich.console import Console

STRUCTURES = ("s4", "s4_ads_relu", "dss", "s5", "mega", "mamba")
METHODS = ("standard", "pgd", "trades")


def run_demo(console: Console, out: Path, *, jobs: int | None, device: str, seed: int) -> int:
    """Runs the grid in parallel, continuing what is there, and writes the report.

    Returns the exit status.
    """
    from robustssm.reporting.write import write_report
    from robustssm.sweep import sweep

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = jobs or max(1, cores or 1)
    # Long runs first, so that no core is idle at the end.
    names = [
        f"digits.{structure}_{method}"
        for method in reversed(METHODS)
        for structure in ("mamba", *(s for s in STRUCTURES if s != "mamba"))
    ]
    console.print(
        f"{len(names)} runs on 8x8 digits, {jobs} at a time; a killed demo can be continued."
    )
    began, failed = time.monotonic(), 0
    overrides = {"seed": str(seed)}
    outcomes = sweep(names, out / "runs", jobs=jobs, overrides=overrides, device=device)
    for number, outcome in enumerate(outcomes, 1):
        elapsed = time.monotonic() - began
        head = f"[{elapsed:4.0f} s] {number:2}/{len(names)}  {outcome.recipe:<28}"
        if outcome.result is None:
            failed += 1
            console.print(
                f"{head} failed: {outcome.error}", markup=False, highlight=False, soft_wrap=True
            )
            continue
        attacks = "  ".join(f"{k} {100 * v:5.1f}" for k, v in outcome.result["attacks"].items())
        clean = 100 * outcome.result["clean_accuracy"]
        console.print(
            f"{head} clean {clean:5.1f}  {attacks}", markup=False, highlight=False, soft_wrap=True
        )
    if failed < len(names):
        paths = write_report([out / "runs"], out)
        console.print(f"\nThe report: {paths.html.resolve()}", soft_wrap=True, highlight=False)
        console.print(f"As a table: {paths.markdown.resolve()}", soft_wrap=True, highlight=False)
    return 1 if failed else 0
