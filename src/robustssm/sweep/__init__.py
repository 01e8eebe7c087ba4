"""Grids of recipes, overrides and seeds: in processes of this machine, or on Ray.

from robustssm import sweep
for outcome in sweep.run(["digits.table1"], Path("runs"), seeds=range(3), jobs=2):
    print(outcome.job.title, outcome.summary)
"""

from robustssm.sweep.call import Sweep, run
from robustssm.sweep.job import Job, Outcome, Progress, Setup, Watcher
from robustssm.sweep.plan import Plan, find, lay_out

__all__ = [
    "run",
    "Sweep",
    "lay_out",
    "Plan",
    "find",
    "Job",
    "Setup",
    "Outcome",
    "Progress",
    "Watcher",
]
