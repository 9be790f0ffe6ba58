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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from graphopt.contracts import TensorSpec
from graphopt.dataset import Dataset, open_dataset
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


def graphopt(*arguments: object, env: dict[str, str] | None = None) -> Ran:
    """Run the graphopt command line of this environment."""
    return run([sys.executable, "-P", "-m", "graphopt", *arguments], env)


def optimized(*arguments: object, env: dict[str, str] | None = None) -> tuple[dict[str, Any], Ran]:
    """Run ``graphopt optimize``: its report, or ``failed`` with why nothing was written; and what the command took."""
    ran = graphopt("optimize", *arguments, "--json", env=env)
    if not ran.stdout.startswith("{"):
        return {"failed": f"exit {ran.returncode}: {ran.stderr.strip()[:200]}"}, ran
    report = json.loads(ran.stdout)
    if report["output"] is None:
        return {"failed": report["verdict"], "peak_rss_bytes": report["peak_rss_bytes"]}, ran
    return report, ran


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


def cell(text: str) -> str:
    """What a command said, as one cell of a table."""
    return text.replace("|", "/").replace("\n", " ")


def interval(found: Mapping[str, Any], digits: int = 2) -> str:
    """A measured ``speedup`` with its 95 % interval."""
    return f"{found['speedup']:.{digits}f} ({found['speedup_low']:.{digits}f} to {found['speedup_high']:.{digits}f})"


@dataclass(frozen=True)
class Data:
    """The data of a trained model: labelled for its metric, unlabelled for calibration, and how images become tensors."""

    labelled: str
    calibration: str = ""
    images: str = ""

    def checked(self) -> list[object]:
        """Options of the command line for what is evaluated."""
        return ["--eval", zoo() / self.labelled, *(["--images", self.images] if self.images else [])]

    def given(self) -> list[object]:
        """Options of the command line for calibration, and for what is evaluated."""
        return ["--data", zoo() / self.calibration, *self.checked()]

    def read(self, specs: Sequence[TensorSpec], *, calibration: bool = False) -> Dataset:
        """The samples that are evaluated, or those for calibration, for a model with these inputs."""
        path = zoo() / (self.calibration if calibration else self.labelled)
        return open_dataset(str(path), specs, images=self.images or None)


CIFAR = Data("data/cifar10/eval.npz", "data/cifar10/calib.npz")
_IMAGENET = partial(Data, "data/imagenet/eval", "data/imagenet/calib")
DATA: Mapping[str, Data] = {
    "cifar_resnet20": CIFAR,
    "cifar_resnet20_legacy": CIFAR,
    "cifar_resnet56": CIFAR,
    "mnist_8": Data("data/mnist/eval.npz"),
    "mobilenet_v1_025": _IMAGENET("crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"),
    "mobilenet_v2": _IMAGENET("crop=224,scale=127.5,mean=1,std=1,label-offset=1,channels=rgb"),
    "squeezenet1_1": _IMAGENET("crop=224,scale=1,channels=bgr,mean=104:117:123,std=1"),
}
"""Data of the trained models; the others get generated inputs."""


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
