"""Every benchmark in turn, each in a process of its own, and their rows as one table.

python -m benchmarks.all [--quick] [--out FILE.md] [--paper PATH] [--s4 PATH] [--mega PATH]

With --quick under ten minutes on two cores. A benchmark that fails is named, the others still run,
and the exit status is 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import arguments

NAMES = (
    "at_step",
    "attack_step",
    "kernels",
    "convolution",
    "layers",
    "selective_scan",
    "evaluation",
    "scaling",
)


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Runs them; returns what each printed as JSON, by name.

    Raises:
        SystemExit: If one of them failed, after all have run.
    """
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--out", {"type": Path, "help": "a table in Markdown"}),
            ("--only", {"nargs": "+", "choices": NAMES, "default": NAMES}),
        ),
    )
    found: dict[str, dict] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in parsed.only:
            began = time.monotonic()
            result = _run(name, parsed, Path(directory) / f"{name}.json")
            seconds[name] = time.monotonic() - began
            if result is not None:
                found[name] = result
            print(f"== {name}: {seconds[name]:.0f} s\n", flush=True)
    failed = [name for name in parsed.only if name not in found]
    if parsed.out is not None and found:
        parsed.out.write_text(markdown(found, seconds, failed))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(found) + "\n")
    print(f"{sum(seconds.values()):.0f} s in all; failed: {', '.join(failed) or 'none'}")
    if failed:
        raise SystemExit(1)
    return found


def markdown(
    found: Mapping[str, dict], seconds: Mapping[str, float], failed: Sequence[str] = ()
) -> str:
    """The rows of all benchmarks as tables, with the machine they come from."""
    first = next(iter(found.values()))
    machine = "; ".join(f"{key} {value}" for key, value in first["machine"].items())
    lines = ["# Benchmarks", "", f"{first['date']}, {first['mode']} run. {machine}.", ""]
    lines.append("Times are medians; a ratio is the peer's time over ours, in the same run.")
    for name, result in found.items():
        lines += ["", f"## {name}: {result['question']}", ""]
        before, after = result["load_before"][:1], result["load_after"][:1]
        lines.append(f"{seconds[name]:.0f} s; load average {before} before, {after} after.")
        lines += [f"Not here: {why}." for why in result["not_here"]]
        lines += ["", "| what | sizes | peer | threads | ours, s | peer, s | ratio | memory |"]
        lines.append("|---|---|---|---|---|---|---|---|")
        lines += [_row(row) for row in result["all"]]
    if failed:
        lines += ["", f"Failed: {', '.join(failed)}."]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, object]) -> str:
    memory = f"{row['saved_ratio']:.1f}x less" if "saved_ratio" in row else ""
    cells = (
        row["what"],
        row["shape"],
        row["peer"],
        row["threads"],
        f"{row['ours_s']:.3g}",
        f"{row['peer_s']:.3g}",
        f"{row['ratio']:.2f}",
        memory,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _run(name: str, parsed: argparse.Namespace, file: Path) -> dict | None:
    """One benchmark's JSON, or None if it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
    command += ["--quick"] if parsed.quick else ["--tiny"] if parsed.tiny else []
    command += ["--threads", *map(str, parsed.threads)]
    command += ["--without-kernels"] if parsed.without_kernels else []
    command += ["--rounds", str(parsed.rounds)] if parsed.rounds else []
    for peer in ("paper", "s4", "mega"):
        path = getattr(parsed, peer)
        command += [f"--{peer}", str(path.resolve())] if path else []
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1])
    return json.loads(file.read_text()) if done.returncode == 0 and file.exists() else None


if __name__ == "__main__":
    main()
