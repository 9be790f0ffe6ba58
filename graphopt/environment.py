"""The machine and the versions: what a report must say for its figures to mean something to somebody else."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .report.schema import Environment

# Instruction sets that change which kernels a runtime picks, as the kernel names them on x86-64 and arm64.
_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

_ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")


@cache
def environment() -> Environment:
    """Describe this machine. Reads files and package metadata only: imports no runtime."""
    model, flags = _processor()
    return Environment(
        cpu=model,
        isa=[name for name in _ISA if name in flags],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        os=platform.platform(),
        python=platform.python_version(),
        onnx=version("onnx"),
        onnx_ir=version("onnx-ir"),
        numpy=version("numpy"),
        onnxruntime=next((found for name in _ONNXRUNTIME if (found := installed(name))), None),
        openvino=installed("openvino"),
    )


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, None when it is not there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def no_telemetry() -> None:
    """Keep engines that are imported from now on from telling their makers about it.

    onnxruntime would start a thread, write to the user's cache folder and use the network; OpenVINO would fork a process for
    that, and does without the package that it reports with.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it is an ImportError then


def fingerprint() -> str:
    """A short key of what decides speed here: processor, instruction sets, cores, operating system kind, onnxruntime."""
    here = environment()
    parts = (here.cpu, ",".join(here.isa), str(here.cores), platform.system(), str(here.onnxruntime))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident so far, in bytes; 0 where the system does not tell (Windows).

    Linux's ``ru_maxrss`` begins at the peak of the process that started this one, so ``/proc`` is asked where it is there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _memory_bytes() -> int:
    """Physical memory; 0 where the system does not tell (Windows)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _processor() -> tuple[str, set[str]]:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields: dict[str, str] = {}
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name") or fields.get("Model") or platform.machine()
        return name, set((fields.get("flags") or fields.get("Features") or "").split())
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
        return done.stdout.strip() or platform.machine(), set()
    return platform.processor() or platform.machine(), set()
