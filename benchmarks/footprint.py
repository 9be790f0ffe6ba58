"""How light the tool is: CPU seconds of ``--help`` and of a run, what an import loads, the size of an installation."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import common

HEAVY = ("torch", "onnxruntime", "onnxscript")


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    helps = [common.graphopt("--help") for _ in range(7)]
    assert all(ran.returncode == 0 for ran in helps)
    help_seconds = statistics.median(ran.cpu_seconds for ran in helps)
    loaded = common.run(
        [sys.executable, "-P", "-c", f"import graphopt, sys; print([m for m in {HEAVY!r} if m in sys.modules])"]
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        megabytes = installed_megabytes(Path(temporary))
        source = common.zoo() / "models" / "cifar_resnet56.onnx"
        runs = [common.graphopt("optimize", source, "-o", Path(temporary) / "o.onnx", "--json") for _ in range(3)]
    assert all(json.loads(ran.stdout)["passed"] for ran in runs)
    seconds = statistics.median(ran.cpu_seconds for ran in runs)
    figures = {
        "help_cpu_seconds": help_seconds,
        "heavy_modules_after_import": loaded,
        "installed_megabytes": megabytes,
        "optimize_cifar_resnet56_cpu_seconds": seconds,
    }
    rows = [
        ("`graphopt --help`, CPU s (median of 7)", f"{help_seconds:.2f}", "< 0.4"),
        (f"of {', '.join(HEAVY)}, loaded by `import graphopt`", loaded, "[]"),
        ("fresh environment with `graphopt[cpu]`, MB", megabytes, "< 350"),
        ("`graphopt optimize cifar_resnet56.onnx`, verified and timed, CPU s (median of 3)", f"{seconds:.1f}", "< 15"),
    ]
    text = "Memory for models over 2 GB is in [large_model.md](large_model.md)."
    common.publish("footprint", "How light it is", [common.table(("what", "measured", "bound"), rows), text], figures, options)


def installed_megabytes(folder: Path) -> int:
    """Install ``graphopt[cpu]`` from the checkout into a fresh environment; its size as ``du`` counts it."""
    venv = folder / "venv"
    for command in (
        [sys.executable, "-m", "venv", venv],
        [venv / "bin" / "pip", "install", "-q", "-c", common.ROOT / "constraints.txt", f"{common.ROOT}[cpu]"],
    ):
        ran = common.run(command)
        assert ran.returncode == 0, ran.stderr
    return int(common.run(["du", "-sm", venv]).stdout.split()[0])


if __name__ == "__main__":
    main()
