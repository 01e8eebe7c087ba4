"""Options that several verbs share, and where they print."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console()

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. objective.beta=3."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="ROBUSTSSM_DATA", help="Where data files are looked for."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Devices = Annotated[
    int, typer.Option(min=1, help="Processes that share every batch, one per device.")
]
Nodes = Annotated[
    int, typer.Option(min=1, help="Hosts with so many devices; start this on each of them.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default what suits the batch.")
]


def _keep_memory(asked: bool) -> bool:
    """Done at once, in this process and those that it will start; no verb needs to know."""
    if asked:
        from robustssm.core.allocator import keep_freed_memory

        keep_freed_memory()
    return asked


KeepMemory = Annotated[
    bool,
    typer.Option(
        "--keep-memory",
        callback=_keep_memory,
        help="Keep freed memory for reuse: faster on a CPU where tensors are large, takes more "
        "memory (Linux with glibc).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def assignments(set_: list[str] | None) -> dict[str, str]:
    """The KEY=VALUE of `--set`.

    Raises:
        ValueError: If one is not of that form.
    """
    found = {}
    for text in set_ or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(
                f"`--set` must be KEY=VALUE; got '{text}'. For example: --set objective.beta=3"
            )
        found[key.strip()] = value.strip()
    return found
