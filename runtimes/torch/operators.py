"""What each operator of ONNX is in torch: tables from its name to a small function, by what the operators do."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from . import elementwise, layout, products, quantization, recurrent, reductions, windows
from .call import Call, Rule

__all__ = ["TABLE", "Call", "Rule", "called"]

TABLE: Mapping[str, Rule] = {
    name: rule
    for module in (elementwise, layout, reductions, windows, products, recurrent, quantization)
    for name, rule in module.TABLE.items()
}
"""By ``Operator``, or ``domain.Operator`` where the domain is not ONNX's own."""


def called(node: ir.Node) -> str:
    """What the table knows a node's operator by."""
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
