"""What each operator of ONNX is in torch: tables from its name to a small function, by what the operators do."""

from __future__ import annotations

from collections.abc import Mapping

from . import elementwise, layout, products, quantization, recurrent, reductions, windows
from .call import Call, Rule

__all__ = ["TABLE", "Call", "Rule"]

TABLE: Mapping[str, Rule] = {
    name: rule
    for module in (elementwise, layout, reductions, windows, products, recurrent, quantization)
    for name, rule in module.TABLE.items()
}
"""By ``Operator``, or ``domain.Operator`` where the domain is not ONNX's own."""
