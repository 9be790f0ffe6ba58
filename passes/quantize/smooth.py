"""``quantize.smooth``: SmoothQuant (Xiao et al. 2023), for channels that only MatMul and Gemm read.

    LayerNorm -> MatMul        gamma and beta divided by s, rows of the weight multiplied: (x / s) (diag(s) W) = x W
    Linear -> Relu -> Linear   likewise, and through the products of attention with values

Activations of transformers have channels far above the others; a part of their range moves into the weights, where each output
channel has a scale of its own. alpha says which part: it is searched per group, on data (``balance.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.contracts import Change, Context, Need, Pass

from . import balance
from .equalize import LINEAR, BalanceOptions


class Smooth(Pass):
    """Smooth the channels that only MatMul and Gemm read."""

    name = "quantize.smooth"
    summary = "outlier channels moved from activations into weights, the function unchanged, before quantization"
    Options = BalanceOptions
    needs = frozenset({Need.DATA})
    options: BalanceOptions

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Scale every group of channels where that lowers the error of quantization."""
        return balance.improve(model, context, self.options.samples, lambda group: group.op_types <= LINEAR)
