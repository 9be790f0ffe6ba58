"""What the benchmarks share: a header that says where figures come from, Markdown tables, and measuring a whole command.

The scripts are run from the repository's root: ``python benchmarks/NAME.py``. Each prints a Markdown page, and writes
it to docs/ with ``--docs`` and its figures as JSON with ``--json FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.environment import environment

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ran:
    """A finished command and what it took."""

    returncode: int
    stdout: str
    stderr: str
    cpu_seconds: float
    wall_seconds: float
    peak_rss_bytes: int


def run(command: Sequence[object], env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end in a process of its own and account for it (children included)."""
    arguments = [str(part) for part in command]
    begun = time.perf_counter()
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = process.stdout.read(), process.stderr.read()  # what our commands say on stderr fits into the pipe
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    return Ran(process.returncode, stdout, stderr, seconds, time.perf_counter() - begun, usage.ru_maxrss * 1024)


def graphopt(*arguments: object) -> Ran:
    """Run the graphopt command line of this environment."""
    return run([sys.executable, "-P", "-m", "graphopt", *arguments])


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument(
        "--docs", type=Path, nargs="?", const=ROOT / "docs", metavar="FOLDER", help="write the page to docs/, or elsewhere"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = [":---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, rule, *rows))


def zoo() -> Path:
    """The folder with trained models and data that GRAPHOPT_ZOO names."""
    if not (folder := os.environ.get("GRAPHOPT_ZOO")):
        sys.exit("This benchmark needs trained models: set GRAPHOPT_ZOO to a folder with models/ and data/.")
    return Path(folder)


def publish(name: str, title: str, parts: Sequence[str], figures: Any, options: argparse.Namespace) -> None:
    """Print the page ``docs/NAME.md`` with the machine, the versions and the command, and write what was asked for."""
    here = environment()
    chosen = ["PATH" if os.sep in argument else argument for argument in sys.argv[1:]]
    typed = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *chosen])
    header = (
        f"Made by `{typed}` on {here.cpu}, {here.cores} cores ({', '.join(here.isa)}); "
        f"Python {here.python}, onnxruntime {here.onnxruntime}, onnx {here.onnx}, onnx-ir {here.onnx_ir}."
    )
    page = "\n\n".join([f"# {title}", header, *parts]) + "\n"
    print(page)
    for folder in filter(None, (options.json and options.json.parent, options.docs)):
        folder.mkdir(parents=True, exist_ok=True)
    if options.json:
        options.json.write_text(
            json.dumps({"environment": here.model_dump(), "figures": figures}, indent=2) + "\n", encoding="utf-8"
        )
    if options.docs:
        (options.docs / f"{name}.md").write_text(page, encoding="utf-8")
