"""What a benchmark prints: a table, the machine, and one line of JSON at the end."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.harness import Comparison, Effort, Times
from robustssm.core.provenance import commit
from robustssm.ops.kernels import native

PEER_PACKAGES = ("s5-pytorch", "mambapy", "opt-einsum")


def arguments(
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    add: Sequence[tuple[str, dict]] = (),
) -> argparse.Namespace:
    """Options that every benchmark has, and those in `add`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the same sizes, fewer rounds")
    size.add_argument("--tiny", action="store_true", help="sizes of a test; times mean nothing")
    parser.add_argument("--threads", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, help="rounds per comparison and number of threads")
    parser.add_argument(
        "--without-kernels", action="store_true", help="run without our compiled kernels"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON line there")
    parser.add_argument("--paper", type=Path, help="checkout of the code of qi2024exploring")
    parser.add_argument("--s4", type=Path, help="checkout of the official S4")
    parser.add_argument("--mega", type=Path, help="checkout of the official Mega")
    for flag, settings in add:
        parser.add_argument(flag, **settings)
    parsed = parser.parse_args(argv)
    if parsed.threads is None:
        parsed.threads = [2] if parsed.quick else [1] if parsed.tiny else [1, 2]
    return parsed


class Report:
    """Collects the comparisons of one benchmark; the first row of all is its headline."""

    def __init__(self, question: str, parsed: argparse.Namespace):
        """Prints the question and notes the state of the machine.

        Args:
            question: What the benchmark answers.
            parsed: What `arguments` returned.
        """
        self.question, self.parsed = question, parsed
        self.rows: list[dict] = []
        self.absent: list[str] = []
        self.machine = machine()
        if parsed.without_kernels:
            self.machine["kernels"] = "left out"
        self.load_before = _load()
        print(question)
        print("; ".join(f"{key} {value}" for key, value in self.machine.items()))

    def not_here(self, why: object) -> None:
        """Says which peer could not be used."""
        if str(why) in self.absent:
            return
        self.absent.append(str(why))
        print(f"not here: {why}")

    def effort(self, *, quick: Effort | None = None, full: Effort | None = None) -> Effort:
        """Rounds and seconds, by the options; `quick` and `full` where a benchmark has its own."""
        if self.parsed.tiny:
            chosen = Effort(rounds=2, seconds=0.0, least=1)
        elif self.parsed.quick:
            chosen = quick or Effort(rounds=7, seconds=3.0)
        else:
            chosen = full or Effort(rounds=25, seconds=20.0, least=5)
        rounds = self.parsed.rounds
        return chosen if rounds is None else Effort(rounds=rounds, seconds=0.0, least=rounds)

    def add(self, comparison: Comparison, effort: Effort | None = None) -> list[dict]:
        """Compares, then measures with every number of threads; returns the new rows."""
        print(f"\n{comparison.what}, {comparison.shape}")
        new = []
        with self.kernels():
            for name, worst in comparison.verify().items():
                print(f"  '{name}' agrees: worst gap {worst:.1e} of the largest entry")
            saved = {c.name: c.saved_bytes() for c in comparison.candidates if c.saved_bytes}
            for threads in self.parsed.threads:
                times = comparison.measure(threads=threads, effort=effort or self.effort())
                new += _rows(comparison, times, threads, saved)
        for row in new:
            print("  " + _line(row))
        self.rows += new
        return new

    def kernels(self) -> AbstractContextManager[None]:
        """The context in which our compiled kernels run, or, if asked for, do not."""
        return native.without() if self.parsed.without_kernels else nullcontext()

    def add_row(self, row: dict) -> None:
        """A row that no comparison made."""
        self.rows.append(row)
        print(f"{row['what']}, {row['shape']}\n  {_line(row)}")

    def finish(self) -> dict:
        """Prints the line of JSON, writes it where it was asked for, and returns it as a value.

        Raises:
            ValueError: If nothing was measured.
        """
        if not self.rows:
            raise ValueError(
                f"'{self.question}' needs something to measure; nothing could be: {self.absent}."
            )
        most = max(self.parsed.threads)
        head = next(row for row in self.rows if row["threads"] == most)
        result = {
            "question": self.question,
            **{key: head[key] for key in ("ratio", "peer", "ours_s", "peer_s", "threads", "shape")},
            "mode": "tiny" if self.parsed.tiny else "quick" if self.parsed.quick else "full",
            "all": self.rows,
            "not_here": self.absent,
            "machine": self.machine,
            "load_before": self.load_before,
            "load_after": _load(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        line = json.dumps(result)
        if self.parsed.json is not None:
            self.parsed.json.write_text(line + "\n")
        print(f"\nload average {self.load_before} before, {result['load_after']} after")
        print(line, flush=True)
        return result


def machine() -> dict[str, str]:
    """Versions, commit and processor."""
    found = {
        "torch": torch.__version__,
        "robustssm": commit() or "no checkout",
        "kernels": native.state().level or "none",
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
    }
    for name in PEER_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _rows(
    comparison: Comparison, times: dict[str, Times], threads: int, saved: dict[str, int]
) -> list[dict]:
    ours, *others = comparison.candidates
    mine, rows = times[ours.name], []
    for other in others:
        theirs = times[other.name]
        row = {
            "what": comparison.what,
            "shape": comparison.shape,
            "ours": ours.name,
            "peer": other.name,
            "threads": threads,
            "ratio": theirs.median / mine.median,
            "ours_s": mine.median,
            "peer_s": theirs.median,
            "ratio_of_minima": theirs.minimum / mine.minimum,
            "rounds": len(mine.samples),
        }
        if ours.name in saved and other.name in saved:
            row["ours_saved_bytes"], row["peer_saved_bytes"] = saved[ours.name], saved[other.name]
            row["saved_ratio"] = saved[other.name] / saved[ours.name]
        rows.append(row)
    return rows


def _line(row: dict) -> str:
    text = (
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ' '}  "
        f"{_seconds(row['ours_s'])} ({row['ours']})  {_seconds(row['peer_s'])} ({row['peer']})  "
        f"ratio {row['ratio']:.2f}"
    )
    if "ratio_of_minima" in row:
        text += f"  (of minima {row['ratio_of_minima']:.2f}, {row['rounds']} rounds)"
    if "saved_ratio" in row:
        mine, theirs = row["ours_saved_bytes"] / 1e6, row["peer_saved_bytes"] / 1e6
        text += f"  saved for backward {mine:.2f} MB, {theirs:.2f} MB: {row['saved_ratio']:.1f}"
    return text


def _seconds(value: float) -> str:
    units = {"s ": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
    unit = next((unit for unit, factor in units.items() if value * factor >= 1), "ns")
    return f"{value * units[unit]:8.2f} {unit}"


def _load() -> list[float]:
    if not hasattr(os, "getloadavg"):
        return []
    return [round(value, 2) for value in os.getloadavg()]


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
