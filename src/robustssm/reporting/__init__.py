"""Reports: from the records of runs to tables, figures and pages. Imports no torch.

`write_report(runs, out)` is the way in; it is fetched on first use, so that importing this package
costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustssm.reporting.write import ReportPaths, write_report

__all__ = ["write_report", "ReportPaths"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("robustssm.reporting.write"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
