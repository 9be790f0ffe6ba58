"""The simplifiers that are compared: how each is installed and called, each call in a fresh process with a time limit.

Peers are installed in environments of their own, so that none decides the other's dependencies. What is measured is the
call as a user writes it, from file to file; imports come before.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT

LIMIT_SECONDS = 900


@dataclass(frozen=True)
class Simplifier:
    """A tool: what pip installs (nothing: it runs in this environment), what is imported, and the call."""

    pins: tuple[str, ...]
    imports: str
    call: str


_SHARED = ("onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6")
PEERS = {
    "onnxsim": Simplifier(
        ("onnxsim==0.8.1", *_SHARED),
        "import onnx, onnxsim",
        "simplified, _ = onnxsim.simplify(onnx.load(source)); onnx.save(simplified, out)",
    ),
    "OnnxSlim": Simplifier(("onnxslim==0.1.98", *_SHARED), "import onnxslim", "onnxslim.slim(source, out)"),
    "onnxscript": Simplifier(
        ("onnxscript==0.7.2", "onnx-ir==1.1.0", *_SHARED),
        "import onnx_ir, onnxscript.optimizer",
        "model = onnx_ir.load(source); onnxscript.optimizer.optimize(model); onnx_ir.save(model, out)",
    ),
}
CHAIN = ("onnxscript", "onnxsim", "OnnxSlim")
OURS = "graphopt"
FROZEN = "graphopt, simplify.freeze=true"
_IMPORTS = "import numpy.random, lossless; lossless.prepare()"
TOOLS = {
    **PEERS,
    OURS: Simplifier((), _IMPORTS, "print(json.dumps(lossless.file_to_file(source, out)))"),
    FROZEN: Simplifier((), _IMPORTS, "lossless.file_to_file(source, out, ['simplify.freeze=true'])"),
}

_SOURCES = (
    "graphopt/contracts/*.py",
    "graphopt/model/*.py",
    *(f"graphopt/{name}.py" for name in ("again", "garbage", "graphs", "recipe", "shapes", "skeleton", "walk")),
    "graphopt/recipes/lossless.yaml",
    *(f"passes/{family}/*.py" for family in ("simplify", "fuse", "shapes")),
)
"""What graphopt runs in these calls."""

_WORKER = """
import json, resource, sys, time
sys.path.insert(0, {benchmarks!r})
{imports}
def cpu():
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + child.ru_utime + child.ru_stime
def peak():
    with open("/proc/self/status") as status:  # not ru_maxrss: that begins at the parent's
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
source, out = sys.argv[1:]
imports, imported = cpu(), peak()
{call}
taken = {{"cpu_seconds": cpu() - imports, "import_cpu_seconds": imports, "peak_bytes": peak() - imported}}
print("\\n" + json.dumps(taken))
"""


def version(name: str) -> str:
    """What decides a tool's result: its pins, or the sources of graphopt's part as they are now; and how it is called."""
    tool = TOOLS[name]
    digest = hashlib.sha256(repr((tool.pins, tool.imports, tool.call, _WORKER)).encode())
    if not tool.pins:
        for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def environment(name: str, folder: Path) -> Path:
    """The Python in which a tool is installed; the environment is made when it is not there."""
    return made(TOOLS[name].pins, folder) if TOOLS[name].pins else Path(sys.executable)


def made(pins: tuple[str, ...], folder: Path) -> Path:
    """The Python of the environment with these packages, made in ``folder`` when it is not there."""
    venv = folder / hashlib.sha256(" ".join(pins).encode()).hexdigest()[:12]
    ready = venv / "ready"
    if not ready.exists():
        print(f"installing {' '.join(pins)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", *pins], check=True)
        ready.touch()
    return venv / "bin" / "python"


def call(name: str, envs: Path, source: Path, out: Path) -> dict[str, Any]:
    """Simplify a file: CPU seconds of the call and of the imports, and the peak in bytes beyond the imports; or ``failed``.

    Of graphopt's call also the CPU seconds of its parts, as ``lossless.file_to_file`` names them.
    """
    tool = TOOLS[name]
    code = _WORKER.format(benchmarks=str(ROOT / "benchmarks"), imports=tool.imports, call=tool.call)
    ended = printed([environment(name, envs), "-c", code, source, out])
    if "failed" not in ended and not out.exists():
        return {"failed": "wrote nothing"}
    return ended


def printed(command: list[Any]) -> dict[str, Any]:
    """Run a command and return what the objects hold that it prints on lines of their own, or ``failed`` with the reason."""
    try:
        ended = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {LIMIT_SECONDS} s"}
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not lines:
        said = [line for line in ended.stderr.splitlines() if line.strip()][-1:]
        return {"failed": f"ended with {ended.returncode}: {said[0][:300] if said else ''}"}
    return {key: value for line in lines for key, value in json.loads(line).items()}
