"""Facts about operators that hold wherever they run; what a target has kernels for is in ``graphopt/targets/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

OPSET = 13
"""From this version of ONNX's operators on, DequantizeLinear has an axis."""
IR_VERSION = 7
"""What belongs to that version of the operators."""
OPSET_16_BITS = 21
"""From this version on, QuantizeLinear gives 16 bits."""


@dataclass(frozen=True)
class Weighted:
    """An operator that multiplies its first input by a weight, its second, and adds a bias, its third.

    ``channel`` is the axis of the weight with the output's channels.
    """

    channel: int


WEIGHTED = {"Conv": Weighted(0), "ConvTranspose": Weighted(1), "Gemm": Weighted(1), "MatMul": Weighted(-1)}
"""Gemm with transB and ConvTranspose with groups have it elsewhere: see ``sites.py``."""

ABSORBED = frozenset({"Relu", "Clip"})
"""What quantization does by itself when the range of the output is that of the activation."""

ABSORBING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool"})
"""What an activation that is absorbed may follow."""

ELEMENTWISE = frozenset({"Add", "Mul", "Where"})
"""Operators whose inputs may be constants that become integers."""

OUTPUT_RANGE = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Ranges that are known without data."""

QUANTIZERS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    | {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
"""What a model that is quantized already has."""
