"""The main job on the embedded data: every structure, every method, one report."""

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
    from robustssm.sweep import Job, Plan, Setup, Sweep

    # Long runs first, so that no core is idle at the end.
    names = [
        f"digits.{structure}_{method}"
        for method in reversed(METHODS)
        for structure in ("mamba", *(s for s in STRUCTURES if s != "mamba"))
    ]
    plan = Plan(
        grids=(),
        jobs=tuple(
            Job(name=name, recipe=name, seed=seed, directory=out / "runs" / name) for name in names
        ),
    )
    began, failed = time.monotonic(), 0
    with Sweep(plan, Setup(device=device), out / "runs", jobs=jobs, backend="local") as sweep:
        console.print(
            f"{len(names)} runs on 8x8 digits, {max(1, sweep.slots)} at a time; a killed demo can "
            "be continued."
        )
        for number, outcome in enumerate(sweep.outcomes(), 1):
            elapsed = time.monotonic() - began
            failed += outcome.result is None
            console.print(
                f"[{elapsed:4.0f} s] {number:2}/{len(names)}  {outcome.job.name:<28} "
                f"{outcome.summary}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if failed < len(names):
        paths = write_report([out / "runs"], out)
        console.print(f"\nThe report: {paths.html.resolve()}", soft_wrap=True, highlight=False)
        console.print(f"As a table: {paths.markdown.resolve()}", soft_wrap=True, highlight=False)
    return 1 if failed else 0
