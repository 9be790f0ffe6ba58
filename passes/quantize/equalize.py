"""``quantize.equalize``: cross-layer equalization (Nagel et al. 2019, Data-Free Quantization, section 4.1).

    Conv -> Relu -> Conv       rows of the first weight and its bias divided by s > 0, columns of the second multiplied by s

Relu(x / s) = Relu(x) / s, so the function stays, while channels with a small range use the 256 integers of their tensor as
well as those with a large one. It goes through all that commutes with a positive scale (``homogeneous.py``), residual sums and
Concat included: there all branches get the same scale. Which s, and whether at all, is decided on data (``balance.py``).

High biases (section 4.1.3) are not absorbed. That is exact only for c <= min of what the Relu of a channel reads, and where no
padding follows; in mobilenet_v1_025, mobilenet_v2, squeezenet1_1, cifar_resnet20 and cifar_resnet56 such channels (14 of 2,736,
712 of 15,552, 1 of 3,944, none, none) are never those with the largest values: no tensor's range would become smaller
(0.000 dB on 64 calibration images).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from pydantic import Field

from graphopt.contracts import Change, Context, Need, Pass, PassOptions

from . import balance

LINEAR = frozenset({"Gemm", "MatMul"})


class BalanceOptions(PassOptions):
    """How the scales are found."""

    samples: int = Field(256, ge=2, description="samples that ranges and gains are measured on")


class Equalize(Pass):
    """Equalize the channels that some Conv reads."""

    name = "quantize.equalize"
    summary = "channel ranges evened out between layers, the function unchanged, before quantization"
    Options = BalanceOptions
    needs = frozenset({Need.DATA})
    options: BalanceOptions

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Scale every group of channels where that lowers the error of quantization."""
        return balance.improve(model, context, self.options.samples, lambda group: not group.op_types <= LINEAR)
