"""The int8 quantizers that are compared: how each is installed and called, each call in a fresh process.

Each gets the same float file and the same calibration samples, in an .npz whose arrays are named as the model's inputs. Peers
are called at the setting that is best for onnxruntime on x64 as far as they have one: u8 activations, s8 weights per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplifiers import made, printed


@dataclass(frozen=True)
class Quantizer:
    """A tool: what pip installs, what is imported, and the calls for static and for dynamic int8 (empty: has none)."""

    pins: tuple[str, ...]
    imports: str
    static: str
    dynamic: str = ""


_COMMON = ("onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6")
_READER = """
class Reader(CalibrationDataReader):
    def __init__(self):
        self.samples = iter(feeds)
    def get_next(self):
        return next(self.samples, None)
"""
PEERS = {
    "onnxruntime": Quantizer(
        (*_COMMON, "sympy==1.14.0"),
        "from onnxruntime.quantization import *\nfrom onnxruntime.quantization.shape_inference import quant_pre_process",
        f"""{_READER}
model = onnx.load(source)
if next(entry.version for entry in model.opset_import if not entry.domain) < 13:
    model = onnx.version_converter.convert_version(model, 13)
onnx.save(model, prepared)
try:
    quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
except Exception:
    pass  # it refuses some models that the next call takes
quantize_static(prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8)
""",
        "quantize_dynamic(source, out, per_channel=True, weight_type=QuantType.QInt8)",
    ),
    "NNCF": Quantizer(
        ("nncf==3.4.0", *_COMMON, "openvino==2026.4.1"),
        "import nncf",
        """
model = onnx.load(source)
if next(entry.version for entry in model.opset_import if not entry.domain) < 13:
    model = onnx.version_converter.convert_version(model, 13)
quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
onnx.save(quantized, out)
""",
    ),
    "Quark": Quantizer(
        ("amd-quark==0.13", "torch==2.13.0", "onnx==1.22.0", "onnxruntime==1.31.1", "numpy==2.4.6"),
        "from quark.onnx import ModelQuantizer, QConfig\nfrom onnxruntime.quantization import CalibrationDataReader",
        f"""{_READER}
ModelQuantizer(QConfig.get_default_config("INT8_CNN_DEFAULT")).quantize_model(source, out, Reader())
""",
    ),
}

_WORKER = """
import json, sys, time
import numpy as np, onnx, onnx.version_converter
{imports}
source, out, samples = sys.argv[1:]
prepared = out + ".prepared.onnx"
arrays = dict(np.load(samples))
feeds = [{{name: array[i : i + 1] for name, array in arrays.items()}} for i in range(len(next(iter(arrays.values()))))]
begun = time.process_time()
{call}
taken = time.process_time() - begun
with open("/proc/self/status") as status:  # not ru_maxrss: that begins at the parent's
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print("\\n" + json.dumps({{"cpu_seconds": taken, "peak_bytes": peak}}))
"""


def call(name: str, how: str, envs: Path, source: Path, out: Path, samples: Path) -> dict[str, Any]:
    """Quantize a file: CPU seconds of the call and the process's peak memory in bytes; or ``failed``."""
    tool = PEERS[name]
    code = _WORKER.format(imports=tool.imports, call=getattr(tool, how))
    ended = printed([made(tool.pins, envs), "-c", code, source, out, samples])
    if "failed" not in ended and not out.exists():
        return {"failed": "wrote nothing"}
    return ended
