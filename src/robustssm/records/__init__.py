"""What a run leaves on disk, as values: standard library only, so that reports need nothing else.

Files are JSON, written to a temporary name, flushed to the disk and then renamed.
"""

from robustssm.records.evaluation import (
    Curve,
    EvaluationResult,
    Flagged,
    Flags,
    Provenance,
    SuiteRecord,
    wilson,
)
from robustssm.records.files import JSON, read_json, write_bytes, write_json
from robustssm.records.probes import Axis, ProbeResult, Quantity, join, violations
from robustssm.records.steps import StepRecord, read_records

__all__ = [
    "JSON",
    "Axis",
    "Curve",
    "EvaluationResult",
    "Flagged",
    "Flags",
    "ProbeResult",
    "Provenance",
    "Quantity",
    "StepRecord",
    "SuiteRecord",
    "join",
    "read_json",
    "read_records",
    "violations",
    "wilson",
    "write_bytes",
    "write_json",
]
